"""Finds the weight files that a path means, and joins their headers to one checkpoint.

The format of a file is decided by its first bytes, never by its name, and an index must agree
with its shards both ways, so that no tensor is lost or read from the wrong file.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.adapter_config import read_adapter_config, refuse_without_config
from lora_export.checkpoint.folder.adapter_folder import (
    ADAPTER_NAMES,
    beside,
    find_adapter,
    named_adapter,
    no_single_file,
    unread,
)
from lora_export.checkpoint.folder.elsewhere import elsewhere
from lora_export.checkpoint.folder.hf_cache import cached_snapshot, is_repository_name
from lora_export.checkpoint.folder.side_files import list_side_files
from lora_export.checkpoint.folder.weight_sets import INDEX_SUFFIX, missing_shards, weight_sets
from lora_export.checkpoint.header import LENGTH_BYTES, MAX_HEADER_BYTES, read_header
from lora_export.checkpoint.reading import (
    fail_on,
    is_lfs_pointer,
    lfs_error,
    read_json_object,
    read_start,
    system_errors,
)
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.errors import InputError
from lora_export.records import AdapterFile, Checkpoint, Problem, Shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lora_export.checkpoint.folder.adapter_folder import AdapterPlace
    from lora_export.records import WeightSet

_BASE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LITGPT = "lit_model.pth.lora"
_GGUF = (
    "merge the adapter and the base from which it was converted, then convert the result: "
    "convert_hf_to_gguf.py for a model; llama.cpp's llama-export-lora merges GGUF into GGUF"
)
_NEAR = 0.6
_FACTOR = re.compile(r"(?:^|[._])(?:lora|hada|lokr|vera|ia3)_")
_FOREIGN_STARTS = {
    b"GGUF": "a GGUF file of llama.cpp",
    b"\x89HDF": "an HDF5 file of Keras or TensorFlow",
}


def read_checkpoint(path: Path) -> Checkpoint:
    """The base model at `path`: a weight file, an index, a Hugging Face folder, or org/name.

    Reads headers and JSON only. org/name is looked up in the local Hugging Face cache. Of a
    folder, safetensors are preferred to .bin, as transformers does. Raises InputError with all
    problems found, LimitError for a pickle that is too big, StorageError when unreadable.
    """
    with system_errors(path, "read"):
        root = _locate(path)
        if root.is_dir():
            return _read_folder(root, _base_file(root))
        if root.name.endswith(INDEX_SUFFIX):
            return _read_folder(root.parent, root)
        return Checkpoint(root, "file", (read_shard(root),))


def read_adapter_file(path: Path) -> AdapterFile:
    """The adapter at `path`: a weight file, or a folder that holds one, or org/name in the cache.

    A folder's sub-folders count where it holds no adapter itself. adapter_config.json beside the
    file is parsed as well; where it is there, all other weights in the folder are listed. Raises
    as `read_checkpoint` does.
    """
    with system_errors(path, "read"):
        root = _locate(path)
        place = _adapter_place(root)
        config = read_adapter_config(place.file)
        shards = read_weights(place.chosen)
        others = beside(place) if config else ()
        notes = [*place.notes, *(unread(place.file.parent) if config else ())]
    tensors = {ref.spec.name: ref for shard in shards for ref in shard.tensors}
    metadata, wrapper = shards[0].metadata, shards[0].wrapper
    refuse_without_config(place.file, tensors, config, metadata)
    notes += [note for shard in shards for note in shard.notes]
    files = tuple(shard.file for shard in shards)
    return AdapterFile(
        place.file, tensors, metadata, config, wrapper, tuple(notes), files=files, beside=others
    )


def _adapter_place(root: Path) -> AdapterPlace:
    """The file itself, or the adapter of a folder; litgpt's lies beside the merged model."""
    if not root.is_dir():
        return named_adapter(root)
    litgpt = root / _LITGPT
    return named_adapter(litgpt) if litgpt.exists() else find_adapter(root, _holds_factors)


def _holds_factors(found: WeightSet) -> bool:
    """Whether low-rank factors are among the names; no weights that cannot be read do."""
    with suppress(InputError):
        names = [ref.spec.name for shard in read_weights(found) for ref in shard.tensors]
        return any(_FACTOR.search(name) for name in names)
    return False


def read_weights(found: WeightSet) -> tuple[Shard, ...]:
    """The shards of a set, in the order of their names; an index must agree with them.

    Raises:
        InputError: one is missing or damaged, or a tensor lies in two of them.
        LimitError, StorageError: see read_checkpoint.
    """
    if found.index:
        return _read_shards(found.index.parent, _read_index(found.index))
    if missing := missing_shards(found):
        where = str(found.files[0].parent)
        raise InputError(f"{found.name} lacks {', '.join(missing[:3])}", where=where)
    shards = tuple(read_shard(file) for file in found.files)
    counts = Counter(ref.spec.name for shard in shards for ref in shard.tensors)
    fail_on(
        [
            Problem(f"{name!r} lies in two shards", str(found.files[0].parent / found.name))
            for name, count in counts.items()
            if count > 1
        ]
    )
    return shards


def read_shard(path: Path) -> Shard:
    """One weight file, safetensors or torch.save's, told apart by its first bytes."""
    start = read_start(path, 64)
    if is_lfs_pointer(start):
        raise lfs_error(path)
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        stored = read_pickles(path)
        return Shard(path, stored.tensors, stored.metadata, stored.wrapper, "torch", stored.notes)
    if start[8:9] != b"{" and (kind := _foreign_kind(start)):
        hint = _GGUF if start.startswith(b"GGUF") else ""
        message = f"{kind}: neither a safetensors file nor one of torch.save"
        raise InputError(message, where=str(path), hint=hint)
    metadata, tensors = read_header(path)
    return Shard(path, tensors, metadata)


def _foreign_kind(start: bytes) -> str:
    """What a file is that no reader here understands, "" when it may be a damaged safetensors."""
    for signature, kind in _FOREIGN_STARTS.items():
        if start.startswith(signature):
            return kind
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    return "" if length <= MAX_HEADER_BYTES else "an unknown format"


def _locate(path: Path) -> Path:
    """The path itself, or the cached files of the repository that it names."""
    if path.exists():
        return path
    if snapshot := cached_snapshot(path):
        return snapshot
    hint = _near_names(path)
    if not hint and is_repository_name(path):
        hint = f"not in the local Hugging Face cache either: hf download {path}"
    raise InputError("no such file or folder", where=str(path), hint=hint)


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [item.name for item in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=_NEAR)
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""


def _base_file(folder: Path) -> Path:
    """The weights that transformers would load, or the only ones under another name."""
    for name in _BASE_NAMES:
        if (folder / name).exists():
            return folder / name
    sets = weight_sets(folder)
    alone = [one for one in sets if one.index or one.name.endswith(".safetensors")]
    only = alone[0] if len(alone) == 1 else None
    if only and only.name not in ADAPTER_NAMES and (only.index or len(only.files) == 1):
        return only.index or only.files[0]
    is_adapter = any(one.name in ADAPTER_NAMES for one in sets)
    hint = "this folder holds an adapter, not a base model" if is_adapter else elsewhere(folder)
    raise no_single_file(folder, f"holds none of {', '.join(_BASE_NAMES)}", hint)


def _read_folder(folder: Path, file: Path) -> Checkpoint:
    config_path = folder / "config.json"
    config = read_json_object(config_path, tagged_floats=True) if config_path.exists() else {}
    side_files = list_side_files(folder)
    if not file.name.endswith(INDEX_SUFFIX):
        return Checkpoint(folder, "folder", (read_shard(file),), side_files, config)
    index = _read_index(file)
    shards = _read_shards(folder, index)
    return Checkpoint(folder, "folder", shards, side_files, config, index.metadata, file.name)


@dataclass(frozen=True, slots=True)
class _Index:
    path: Path
    weight_map: Mapping[str, str]
    metadata: Mapping[str, object]


def _read_index(path: Path) -> _Index:
    content = read_json_object(path, unique_keys=True)
    weight_map, metadata = content.get("weight_map"), content.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise InputError("an index needs a weight_map and, if at all, metadata", where=str(path))
    fail_on(
        [
            Problem(f"the file of {name!r} is not a plain file name: {file!r:.200}", str(path))
            for name, file in weight_map.items()
            if not _is_plain_name(file)
        ]
    )
    return _Index(path, weight_map, metadata)


def _is_plain_name(value: object) -> bool:
    """A name inside the folder, on any system."""
    is_name = isinstance(value, str) and value not in {"", ".", ".."}
    return is_name and not any(char in str(value) for char in "/\\\0")


def _read_shards(folder: Path, index: _Index) -> tuple[Shard, ...]:
    """Every shard that the index names, in the order of their names; all problems together."""
    problems: list[Problem] = []
    names = sorted(set(index.weight_map.values()))
    read = [_try_shard(folder / name, problems) for name in names]
    shards = tuple(shard for shard in read if shard is not None)
    if not problems:
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
    """Where index and shards differ: tensors missing, unnamed, in another shard, in two."""
    homes: dict[str, str] = {}
    for shard in shards:
        for ref in shard.tensors:
            name, here = ref.spec.name, shard.file.name
            if name in homes:
                text = f"{name!r} lies in two shards, {homes[name]} and {here}"
                yield Problem(text, str(index.path))
            elif name not in index.weight_map:
                yield Problem(f"{name!r} lies in {here}, but the index lacks it", str(index.path))
            homes.setdefault(name, here)
    for name, file in index.weight_map.items():
        if homes.get(name) != file:
            seen = f"; it lies in {homes[name]}" if name in homes else ""
            text = f"{name!r} is not in {file}, as the index says{seen}"
            yield Problem(text, str(index.path))
