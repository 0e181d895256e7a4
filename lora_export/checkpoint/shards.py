"""Reads weight files of either format, and joins shards to one set of tensors.

The first bytes of a file decide its format; its name does not. An index must agree with its shards
both ways. No tensor is then lost, and none is read from the wrong file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.links import refuse_leaving
from lora_export.checkpoint.folder.weight_sets import missing_shards
from lora_export.checkpoint.header import LENGTH_BYTES, MAX_HEADER_BYTES, read_header
from lora_export.checkpoint.reading import (
    PICKLE_START,
    ZIP_START,
    fail_on,
    is_lfs_pointer,
    lfs_error,
    read_json_object,
    read_start,
)
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.errors import InputError
from lora_export.records import Problem, Shard
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lora_export.records import WeightSet

_GGUF = (
    "merge the adapter and the base from which it was converted, then convert the result: "
    "convert_hf_to_gguf.py for a model; llama.cpp's llama-export-lora merges GGUF into GGUF"
)
"""What to do instead of giving a GGUF file."""

_FOREIGN_STARTS = {
    b"GGUF": "a GGUF file of llama.cpp",
    b"\x89HDF": "an HDF5 file of Keras or TensorFlow",
}


_MOST_MISSING = 20
"""Shards that are looked for one by one; of more, the first are named."""


@dataclass(frozen=True, slots=True)
class _Index:
    """A shard index: the file of every tensor, as transformers writes it."""

    path: Path
    weight_map: Mapping[str, str]
    metadata: Mapping[str, object]


def read_weights(found: WeightSet) -> tuple[Shard, ...]:
    """Read the shards of a set, in the order of their names; an index must agree with them.

    Raises:
        InputError: a shard is missing or damaged, or a tensor lies in two of them.
        LimitError, StorageError: see read_shard.
    """
    if found.index:
        return read_sharded(found.index)[0]
    if missing := missing_shards(found):
        where = str(found.files[0].parent)
        text = f"{found.name} lacks {first_names(missing, 3)}"
        raise InputError(
            text, where=where, hint="copy or download the missing shards", cause="input/shards"
        )
    shards = tuple(read_shard(file) for file in found.files)
    counts = Counter(ref.spec.name for shard in shards for ref in shard.tensors)
    fail_on(
        [
            Problem(
                f"{name!r} lies in two shards",
                str(found.files[0].parent / found.name),
                cause="input/shards",
            )
            for name, count in counts.items()
            if count > 1
        ]
    )
    return shards


def read_shard(path: Path) -> Shard:
    """Read one weight file, of safetensors or of torch.save; its first bytes decide which.

    Raises:
        InputError: the file is missing, damaged, unsafe or of another format.
        LimitError: its pickle is too big.
        StorageError: it cannot be read.
    """
    start = read_start(path, 64)
    if is_lfs_pointer(start):
        raise lfs_error(path)
    # A safetensors file may begin with any byte, its header's length; its ninth byte is "{".
    if start.startswith((ZIP_START, PICKLE_START)) and start[8:9] != b"{":
        stored = read_pickles(path)
        return Shard(path, stored.tensors, stored.metadata, stored.wrapper, "torch", stored.notes)
    if start[8:9] != b"{" and (kind := _foreign_kind(start)):
        hint = _GGUF if start.startswith(b"GGUF") else ""
        message = f"{kind}: neither a safetensors file nor one of torch.save"
        raise InputError(message, where=str(path), hint=hint, cause="input/no-weights")
    metadata, tensors = read_header(path)
    return Shard(path, tensors, metadata)


def _foreign_kind(start: bytes) -> str:
    """Return the name of a format that is not read, "" for a possibly damaged safetensors file."""
    for signature, kind in _FOREIGN_STARTS.items():
        if start.startswith(signature):
            return kind
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    return "" if length <= MAX_HEADER_BYTES else "an unknown format"


def read_sharded(
    index: Path, *, follow_links: bool = True
) -> tuple[tuple[Shard, ...], Mapping[str, object]]:
    """Read every shard that an index names, and the index's own metadata.

    The shards are in the order of their names.

    follow_links: accept shards that are links out of the folder; see links.leaving.

    Raises:
        InputError: the index or a shard is missing or damaged, or they differ; all problems of
            the shards are named.
        LimitError, StorageError: see read_shard.
    """
    content = _read_index(index)
    return _read_shards(index.parent, content, follow_links=follow_links), content.metadata


def _read_index(path: Path) -> _Index:
    content = read_json_object(path, unique_keys=True)
    weight_map, metadata = content.get("weight_map"), content.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        text = "the index has no weight_map object, or its metadata is no object"
        raise InputError(text, where=str(path), cause="input/shards")
    fail_on(
        [
            Problem(
                f"the file of {name!r} is not a plain file name: {file!r:.200}",
                str(path),
                cause="input/shards",
            )
            for name, file in weight_map.items()
            if not _is_plain_name(file)
        ]
    )
    return _Index(path, weight_map, metadata)


def _is_plain_name(value: object) -> bool:
    """Return whether the value is the name of a file inside the folder, on any system."""
    is_name = isinstance(value, str) and value not in {"", ".", ".."}
    return is_name and not any(char in str(value) for char in "/\\\0")


def _read_shards(folder: Path, index: _Index, *, follow_links: bool) -> tuple[Shard, ...]:
    """Read every shard that the index names; all shards are tried before any problem is raised."""
    problems: list[Problem] = []
    names = sorted(set(index.weight_map.values()))
    there = {item.name for item in folder.iterdir()}
    missing = [name for name in names if name not in there]
    if len(missing) > _MOST_MISSING:
        text = f"{len(missing):,} files that it names are not there: {first_names(missing)}"
        hint = "copy or download the missing shards"
        raise InputError(text, where=str(index.path), hint=hint, cause="input/missing-file")
    if not follow_links:
        refuse_leaving(folder, [folder / name for name in names])
    read = [_try_shard(folder / name, problems) for name in names]
    shards = tuple(shard for shard in read if shard is not None)
    if not problems:  # a shard that could not be read would make every tensor in it a disagreement
        problems.extend(_disagreements(index, shards))
    fail_on(problems)
    return shards


def _try_shard(path: Path, problems: list[Problem]) -> Shard | None:
    try:
        return read_shard(path)
    except InputError as error:
        problems.extend(error.problems)
        return None


def _disagreements(index: _Index, shards: Sequence[Shard]) -> Iterable[Problem]:
    """Yield where index and shards differ: tensors missing, unnamed, in another shard, in two."""
    homes: dict[str, str] = {}
    for shard in shards:
        for ref in shard.tensors:
            name, here = ref.spec.name, shard.file.name
            if name in homes:
                text = f"{name!r} lies in two shards, {homes[name]} and {here}"
                yield Problem(text, str(index.path), cause="input/shards")
            elif name not in index.weight_map:
                yield Problem(
                    f"{name!r} lies in {here}, but the index lacks it",
                    str(index.path),
                    cause="input/shards",
                )
            homes.setdefault(name, here)
    for name, file in index.weight_map.items():
        if homes.get(name) != file:
            seen = f"; it lies in {homes[name]}" if name in homes else ""
            text = f"{name!r} is not in {file}, where the index places it{seen}"
            yield Problem(text, str(index.path), cause="input/shards")
