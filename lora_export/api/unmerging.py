"""The verb unmerge: it restores the base byte for byte, where loralib's train() rounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.job.keywords import checked
from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.output.publish import staging
from lora_export.checkpoint.output.targets import check_folder
from lora_export.errors import UsageError
from lora_export.execution.undo import is_restored, read_undo, restore
from lora_export.report.columns import counted, first_names
from lora_export.report.result import Report
from lora_export.report.stopwatch import Stopwatch
from lora_export.verification.failure import refuse_failed
from lora_export.verification.files.undo_check import check_result
from lora_export.verification.listed_check import listed_check

if TYPE_CHECKING:
    from lora_export.api.job.keywords import OnProgress
    from lora_export.checkpoint.output.targets import Kind


@checked("unmerge")
def unmerge(
    merged: str | Path,
    output: str | Path,
    *,
    undo: str | Path | None = None,
    jobs: int | None = None,
    force: bool = False,
    follow_links: bool = False,
    progress: OnProgress | None = None,
) -> Report:
    """Write the base of `merged` at `output`, and prove it by its SHA-256.

    Subtracting an update leaves rounding errors. The undo file holds the base's own bytes instead.

    Example:
        ::

            merge("base.safetensors", ["lora"], "merged.safetensors", undo="lora.undo")
            unmerge("merged.safetensors", "base-again.safetensors", undo="lora.undo")

    Args:
        merged: what `merge` wrote.
        output: the file or folder to write; must not exist unless `force`.
        undo: the file that `merge` kept; it must be named.
        jobs: threads; None takes one a processor.
        force: replace an earlier export at `output`. If `output` is the base already, it stays.
        follow_links: accept symbolic links that lead out of the folder `merged`.
        progress: see `merge`.

    Returns:
        The report, with one check: that every weight file has the base's SHA-256.

    Raises:
        InputError: a file is damaged, or undo file and checkpoint do not belong together.
        VerificationError: `merged` is not the result that the undo file belongs to, or the
            restored files are not those of the base; nothing is published.
        UsageError: `undo` is not named.
        LimitError, OutputError, StorageError: as for `merge`.
    """
    if undo is None:
        hint = "undo=FILE names the file that merge(..., undo=FILE) kept"
        raise UsageError(
            "the undo file of the merge is not named",
            where=str(merged),
            hint=hint,
            cause="usage/command-line",
        )
    clock = Stopwatch(progress)
    kept, target = Path(undo), Path(output)
    checkpoint = read_checkpoint(Path(merged), follow_links=follow_links)
    description, _ = read_undo(kept)
    kind: Kind = "folder" if description["layout"] == "folder" else "file"
    if force and kind == "folder" and is_restored(description, target):
        check = listed_check("restored", [], "the base is there already, to the byte")
        return Report("unmerge", str(target), None, (check,))
    check_folder(target)
    with clock("hash", "bytes") as seen:
        refuse_failed(check_result(checkpoint, description, kept, seen), str(merged))
    inputs = [checkpoint.root, *(shard.file for shard in checkpoint.shards), kept]
    with staging(target, force=force, inputs=inputs, kind=kind) as stage:
        with clock("restore", "bytes") as advance:
            files, wanted = restore(
                checkpoint, kept, stage.path, jobs=jobs or os.cpu_count() or 1, progress=advance
            )
        wrong = [file.path for file in files if wanted.get(file.path, file.sha256) != file.sha256]
        detail = f"{counted(len(wanted), 'weight file')} with the base's SHA-256"
        fault = f"{first_names(wrong)} does not have the base's SHA-256"
        check = listed_check("restored", wrong, detail, fault=fault)
        refuse_failed([check], str(target))
        with clock("publish"):
            stage.publish()
    return Report("unmerge", str(target), None, (check,), files, facts=clock.facts())
