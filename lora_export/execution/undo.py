"""Keeps what a merge changes in an undo file, and restores the base from it, byte for byte.

Subtracting the update is not exact: in half precision every round moves the weight. Only stored
bytes are exact. The undo file is a safetensors file with the original tensors. Its metadata
describes the base's files.
"""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.header import LENGTH_BYTES, METADATA_KEY, read_header
from lora_export.checkpoint.limits import HEADER
from lora_export.checkpoint.output.writer import copy_file, write_bytes
from lora_export.checkpoint.reading import (
    open_for_reading,
    parse_json,
    parse_json_object,
    pread_exact,
    system_errors,
)
from lora_export.errors import InputError, StorageError, UsageError
from lora_export.execution.output_file import FileTask
from lora_export.execution.pipeline import Pipeline
from lora_export.execution.segments import Literal, Range, cut, header_segment
from lora_export.execution.undo_description import FORMAT, RESULT, check_description
from lora_export.report.stopwatch import unseen
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.execution.segments import Segment
    from lora_export.records import Checkpoint, MergePlan, TensorRef, WrittenFile
    from lora_export.report.stopwatch import Advance

KEY = "lora_export.undo"
"""The member of the metadata that holds the description."""


def check_undoable(plan: MergePlan) -> None:
    """Refuse an undo file for a base whose own files cannot be restored.

    Raises:
        UsageError: the merge converts the base from a torch pickle, or takes factors out of it.
    """
    converted = [shard.file.name for shard in plan.base.shards if shard.container == "torch"]
    if converted or plan.dropped.keys() - plan.base.tensors().keys():
        raise UsageError(
            "only a safetensors base can be restored byte for byte; this one is converted",
            where=", ".join(converted[:3]) or str(plan.base.root),
            hint="keep the base itself, or convert it to safetensors first",
            cause="usage/undo",
        )


def write_undo(
    plan: MergePlan,
    path: Path,
    digests: Mapping[Path, str],
    written: Sequence[WrittenFile],
    jobs: int,
) -> WrittenFile:
    """Write the original bytes of every tensor that `plan` changes to the new file `path`.

    Args:
        plan: the merge.
        path: the undo file.
        digests: SHA-256 of the base's files; the restored files must have the same.
        written: the weight files of the result, which the undo file belongs to.
        jobs: threads.

    Raises:
        InputError: a file of the base ends early.
        StorageError: the system refuses.
    """
    base = plan.base.tensors()
    changed = [base[name] for name in _lost(plan)]
    # Digests alone: the same result under another name has the same undo file.
    description = {**_description(plan, digests), RESULT: sorted(f.sha256 for f in written)}
    metadata = {KEY: json.dumps(description, sort_keys=True)}

    def pieces() -> Iterator[Segment]:
        yield header_segment([ref.spec for ref in changed], metadata)
        for ref in changed:
            yield from cut(Range(ref.file, ref.offset, ref.length, ref.spec.name))

    task = FileTask(path, path.name, pieces, sum(ref.length for ref in changed))
    Pipeline([task], jobs, None, lambda _done, _total: None).run()
    return task.result()


def _lost(plan: MergePlan) -> list[str]:
    """Return the names of the base's tensors that the result changes or lacks."""
    changed = [step.out.name for step in plan.steps() if step.action not in ("copy", "add")]
    written = {step.out.name for step in plan.steps()}
    return [*changed, *(name for name in plan.base.tensors() if name not in written)]


def _description(plan: MergePlan, digests: Mapping[Path, str]) -> dict[str, Any]:
    """Return what restores the base's files around its tensors.

    The headers are kept as they are, since another writer orders and pads them otherwise.
    """
    base = plan.base
    there = {file.name for file in plan.side_files if file in base.side_files}
    return {
        "format": FORMAT,
        "layout": base.layout,
        "shards": [
            {
                "file": shard.file.name,
                "header": _encoded(_raw_header(shard.file)),
                "sha256": digests[shard.file],
            }
            for shard in base.shards
        ],
        "index": _index(base),
        "edited": {
            file.name: _encoded((base.root / file.name).read_bytes())
            for file in base.side_files
            if file.name not in there
        },
        "kept": [file.name for file in base.side_files if file.name in there],
    }


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _index(base: Checkpoint) -> dict[str, str] | None:
    if base.index_name is None:
        return None
    return {
        "name": base.index_name,
        "content": _encoded((base.root / base.index_name).read_bytes()),
    }


def _raw_header(file: Path) -> bytes:
    """Read the bytes before the first tensor: the length and the JSON."""
    with open_for_reading(file) as descriptor, system_errors(file, "read"):
        length = int.from_bytes(pread_exact(descriptor, LENGTH_BYTES, 0), "little")
        return pread_exact(descriptor, LENGTH_BYTES + length, 0)


def read_undo(path: Path) -> tuple[dict[str, Any], dict[str, TensorRef]]:
    """Read an undo file: (description, original tensors by name).

    Raises:
        InputError: the file is damaged, no undo file, or names files outside the result's folder.
        StorageError: it cannot be read.
    """
    metadata, refs = read_header(path)
    try:
        description = check_description(parse_json(metadata[KEY].encode(), str(path)))
    except (KeyError, ValueError, TypeError) as error:
        hint = "give the file that merge --undo FILE wrote"
        raise InputError(
            "is no undo file of a merge", where=str(path), hint=hint, cause="input/undo-file"
        ) from error
    return description, {ref.spec.name: ref for ref in refs}


def is_undo_of(path: Path, plan: MergePlan) -> bool:
    """Return whether `path` keeps the same tensors of a base with the same headers.

    A run that is killed after it has put its undo file in place leaves such a file.
    """
    try:
        description, originals = read_undo(path)
    except (InputError, StorageError):
        return False
    headers = [(s.get("file"), s.get("header")) for s in description["shards"]]
    changed = set(_lost(plan))
    shards = plan.base.shards
    return originals.keys() == changed and headers == [
        (shard.file.name, _encoded(_raw_header(shard.file))) for shard in shards
    ]


def is_restored(description: Mapping[str, Any], folder: Path) -> bool:
    """Return whether `folder` holds every weight file of the base already, with its SHA-256."""
    files = [(folder / Path(str(s["file"])).name, s["sha256"]) for s in description["shards"]]
    return all(path.is_file() and file_sha256(path) == digest for path, digest in files)


def restore(
    merged: Checkpoint,
    undo: Path,
    root: Path,
    *,
    jobs: int,
    progress: Advance = unseen,
) -> tuple[tuple[WrittenFile, ...], dict[str, str]]:
    """Write the base again at `root`.

    Args:
        merged: the result of the merge.
        undo: its undo file.
        root: a new file, or an empty folder, as the base was.
        jobs: threads.
        progress: called with the bytes done so far, and in all.

    Returns:
        the files written, and the SHA-256 that each weight file must have, by name.

    Raises:
        InputError: undo file and merged checkpoint do not belong together, or one is damaged.
        StorageError: the system refuses.
    """
    description, originals = read_undo(undo)
    present = merged.tensors()
    tasks, wanted = [], {}
    for shard in description["shards"]:
        name = str(shard["file"]) if description["layout"] == "folder" else root.name
        path = root / name if description["layout"] == "folder" else root
        header = base64.b64decode(shard["header"])
        refs = _restored(path, header, {**present, **originals}, undo)
        pieces = partial(_pieces, header, refs)
        tasks.append(FileTask(path, name, pieces, sum(ref.length for ref in refs)))
        wanted[name] = str(shard["sha256"])
    Pipeline(tasks, jobs, None, progress).run()
    written = [task.result() for task in tasks]
    if description["layout"] == "folder":
        written += _restore_around(description, merged.root, root)
    return tuple(written), wanted


def _restored(
    path: Path, header: bytes, tensors: Mapping[str, TensorRef], undo: Path
) -> list[TensorRef]:
    """Return where the tensors of one file of the base lie now, in the order of its header."""
    refs = []
    for name, length in _layout(header, path):
        ref = tensors.get(name)
        if ref is None or ref.length != length:
            message = "the merged checkpoint does not hold this tensor in its size"
            hint = "give the undo file of this merge"
            raise InputError(message, where=f"{undo}: {name}", hint=hint, cause="input/undo-file")
        refs.append(ref)
    return refs


def _pieces(header: bytes, refs: Sequence[TensorRef]) -> Iterator[Segment]:
    yield Literal(header)
    for ref in refs:
        yield from cut(Range(ref.file, ref.offset, ref.length, ref.spec.name))


def _layout(header: bytes, path: Path) -> list[tuple[str, int]]:
    """Return (name, bytes) of every tensor that a header describes, in the order of their data."""
    try:
        entries = parse_json_object(header[LENGTH_BYTES:], str(path), unique_keys=True, most=HEADER)
        offsets: dict[str, list[int]] = {
            name: entry["data_offsets"]  # type: ignore[index]
            for name, entry in entries.items()
            if name != METADATA_KEY
        }
        ordered = sorted(offsets.items(), key=lambda item: tuple(item[1]))
        return [(name, end - start) for name, (start, end) in ordered]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the stored header is damaged: {reason_of(error)}",
            where=str(path),
            cause="input/undo-file",
        ) from error


def _restore_around(description: Mapping[str, Any], merged: Path, root: Path) -> list[WrittenFile]:
    """Write the index and the side files: edited ones as they were, the others from the result."""
    contents = {name: base64.b64decode(text) for name, text in description["edited"].items()}
    if index := description["index"]:
        contents[index["name"]] = base64.b64decode(index["content"])
    written = []
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        written.append(write_bytes(root / name, content, name=name))
    for name in description["kept"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        written.append(copy_file(merged / name, root / name, name=name))
    return written
