"""Checks a finished artefact, and the inputs that the user names for it, against its manifest."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import files_there, weight_files
from lora_export.execution.digests import hash_files
from lora_export.report.columns import counted, first_names
from lora_export.report.stopwatch import unseen
from lora_export.verification.listed_check import listed_check

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.checkpoint.folder.recorded import Recorded
    from lora_export.records import Adapter, Check, Checkpoint
    from lora_export.report.stopwatch import Advance

_CHANGED = "damaged or edited after it was written: write it again, and do not ship this one"
_OTHER = (
    "name the base and the adapters that it was made of; to hold it against others, move its "
    "manifest away"
)


def check_outputs(path: Path, recorded: Recorded, progress: Advance = unseen) -> tuple[Check, ...]:
    """Check that the manifest lists every weight file, and that every listed file is unchanged.

    A weight file without a digest could be anything, and a loader would read it.

    Args:
        path: the artefact: a folder, or one file.
        recorded: its manifest.
        progress: called with the bytes that were hashed, and with those in all.

    Returns:
        two checks: of the list, and of the digests.

    Raises:
        StorageError: a file cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    present = weight_files(path) if path.is_dir() else [path.name]
    unlisted = [name for name in present if name not in recorded.outputs]
    wrong = unlisted if present else [path.name]  # a folder without weights is no artefact
    listed = listed_check(
        "files listed",
        wrong,
        f"the manifest lists {counted(len(present), 'weight file')}, and no other is there",
        fault=_unlisted(unlisted, len(present)),
    )
    files = recorded.outputs
    found = files_there(folder, files)
    digests = hash_files([folder / name for name in found], os.cpu_count() or 1, progress)
    there = dict(zip(found, digests.values(), strict=True))
    changed = [name for name, digest in files.items() if there.get(name) != digest]
    lost = [name for name in changed if name not in there]
    return listed, listed_check(
        "digests",
        changed,
        f"{counted(len(files), 'file')} with the SHA-256 of the manifest",
        _CHANGED,
        fault=_changed(changed, lost, len(files)),
    )


def _unlisted(unlisted: Sequence[str], present: int) -> str:
    if not present:
        return "no weight file is there"
    return (
        f"{first_names(unlisted)}: not in the manifest, which lists {present - len(unlisted)} of "
        f"{counted(present, 'weight file')}"
    )


def _changed(changed: Sequence[str], lost: Sequence[str], files: int) -> str:
    """Return how many files are unchanged, and which are changed or missing, as one sentence."""
    gone = set(lost)
    other = [name for name in changed if name not in gone]
    parts = [
        f"{first_names(names)} {singular if len(names) == 1 else plural}"
        for names, singular, plural in (
            (other, "has changed", "have changed"),
            (lost, "is missing", "are missing"),
        )
        if names
    ]
    kept = files - len(changed)
    verb = "has" if 1 in (kept, files) else "have"
    still = f"{kept} of {counted(files, 'file')} still {verb} the digest of the manifest"
    return f"{still}; {' and '.join(parts)}"


def check_inputs(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    recorded: Recorded,
    progress: Advance = unseen,
) -> tuple[Check, ...]:
    """Check that the base's files and the adapters have the SHA-256 of the manifest.

    A base without a recorded digest is not compared; the detail reports it.

    progress: as for `check_outputs`.

    Raises:
        StorageError: a file cannot be read.
    """
    wrong = _other(
        {str(adapter.path): f"{adapter.digest} {adapter.joined_digest}" for adapter in adapters},
        [f"{adapter.digest} {adapter.joined_digest}" for adapter in recorded.adapters],
    )
    detail = counted(len(adapters), "adapter")
    if all(recorded.base):
        shards = [shard.file for shard in base.shards]
        files = hash_files(shards, os.cpu_count() or 1, progress)
        wrong += _other({str(file): digest for file, digest in files.items()}, recorded.base)
        detail += f", {counted(len(files), 'file')} of the base"
    else:
        detail += "; no digest of the base was recorded"
    names = ", ".join(adapter.name for adapter in recorded.adapters)
    fault = (
        f"{first_names(wrong)}: not what the manifest records, by the SHA-256; its adapters are "
        f"{names}"
    )
    hint = _hint(adapters, recorded)
    return (listed_check("inputs are those of the manifest", wrong, detail, hint, fault=fault),)


def _hint(adapters: Sequence[Adapter], recorded: Recorded) -> str:
    """Return what to do about other inputs.

    A tensor that the merge ignored is not part of the recorded digest, so it must be ignored again.
    """
    here = {name for adapter in adapters for name in adapter.ignored}
    left = [name for one in recorded.adapters for name in one.ignored if name not in here]
    if not left:
        return _OTHER
    options = " ".join(f"--ignore '{name}'" for name in dict.fromkeys(left))
    return f"the merge was made with {options}: give that again; {_OTHER}"


def _other(given: dict[str, str], recorded: Sequence[str]) -> list[str]:
    """Return the given files that are not recorded; else how many recorded ones are not given."""
    left = Counter(recorded)
    left.subtract(given.values())
    missing = sum(count for count in left.values() if count > 0)
    other = [name for name, digest in given.items() if left[digest] < 0]
    return other if other or not missing else [f"{missing} recorded files that are not named"]
