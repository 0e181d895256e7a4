"""Finds the weight files that the user's path means, and reads a base or an adapter from them.

A path may be a file, an index, a folder, or the name of a repository in the local cache. Only
headers and JSON are read.
"""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.adapter_config import read_adapter_config, refuse_without_config
from lora_export.checkpoint.folder.adapter_folder import (
    ADAPTER_NAMES,
    beside,
    find_adapter,
    foreign_notes,
    named_adapter,
    no_single_file,
)
from lora_export.checkpoint.folder.elsewhere import elsewhere
from lora_export.checkpoint.folder.hf_cache import cached_snapshot, is_repository_name
from lora_export.checkpoint.folder.links import refuse_leaving
from lora_export.checkpoint.folder.quantization import find_quantization
from lora_export.checkpoint.folder.side_files import (
    ADAPTER_CONFIG,
    TORCH_SUFFIXES,
    list_side_files,
)
from lora_export.checkpoint.folder.weight_sets import INDEX_SUFFIX, weight_sets
from lora_export.checkpoint.reading import read_json_object, reading
from lora_export.checkpoint.shards import read_shard, read_sharded, read_weights
from lora_export.errors import InputError
from lora_export.records import AdapterFile, Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.checkpoint.folder.adapter_folder import AdapterPlace
    from lora_export.records import WeightSet

_BASE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers looks for the weights of a folder, in its own order."""

_LITGPT = "lit_model.pth.lora"
"""The name that litgpt gives an adapter's weights."""

_BESIDE = (ADAPTER_CONFIG, "hyperparameters.yaml", "model_config.yaml")
"""The files beside an adapter's weights that decide what they mean; two of them are litgpt's."""

_NEAR = 0.6
"""How similar a name must be to be proposed; 1 means equal (difflib's ratio and default)."""

_COMPARED = 500
"""Names of a folder that are compared with a name that is not there."""

_FACTOR = re.compile(r"(?:^|[._])(?:lora|hada|lokr|vera|ia3)_")
"""Occurs in the names of factors of every kind of adapter that is read."""


def read_checkpoint(path: Path, *, follow_links: bool = False) -> Checkpoint:
    """Read the base model at `path`: a weight file, an index, a Hugging Face folder, or org/name.

    Only headers and JSON are read. org/name is looked up in the local Hugging Face cache. In a
    folder, safetensors are preferred to .bin, as in transformers.

    follow_links: accept links that lead out of the folder; see folder.links.

    Raises:
        InputError: a file is missing, damaged or ambiguous, or leads out of the folder; all
            problems found are named.
        LimitError: a pickle is too big.
        StorageError: a file cannot be read.
    """
    with reading(path):
        root = _locate(path)
        if root.is_dir():
            file = _base_file(root)
            if not follow_links:
                refuse_leaving(root, [file])
            found = _read_folder(root, file, follow_links=follow_links)
        elif root.name.endswith(INDEX_SUFFIX):
            found = _read_folder(root.parent, root, follow_links=follow_links)
        else:
            found = Checkpoint(root, "file", (read_shard(root),))
        return replace(found, quantization=find_quantization(found))


def read_adapter_file(path: Path, *, follow_links: bool = False) -> AdapterFile:
    """Read the adapter at `path`: a weight file, a folder that holds one, or org/name.

    A folder that holds no adapter itself may hold one in a sub-folder. adapter_config.json beside
    the file is parsed as well. If there is one, all other weights in the folder are listed.

    Raises:
        InputError, LimitError, StorageError: see read_checkpoint.
    """
    with reading(path):
        root = _locate(path)
        place = _adapter_place(root)
        if not follow_links:
            refuse_leaving(_folder_of(place, root), _read_from(place, root))
        config = read_adapter_config(place.file)
        shards = read_weights(place.chosen)
        others = beside(place) if config else ()
        if not follow_links:
            refuse_leaving(_folder_of(place, root), [path for one in others for path in one.files])
        notes = [*place.notes, *(foreign_notes(place.file.parent) if config else ())]
    tensors = {ref.spec.name: ref for shard in shards for ref in shard.tensors}
    metadata, wrapper = shards[0].metadata, shards[0].wrapper
    refuse_without_config(place.file, tensors, config, metadata)
    notes += [note for shard in shards for note in shard.notes]
    files = tuple(shard.file for shard in shards)
    return AdapterFile(
        place.file, tensors, metadata, config, wrapper, tuple(notes), files=files, beside=others
    )


def _adapter_place(root: Path) -> AdapterPlace:
    """Return the file itself, or the adapter of a folder."""
    if not root.is_dir():
        return named_adapter(root)
    # litgpt saves its LoRA beside the merged model, so the folder holds two weight files.
    litgpt = root / _LITGPT
    return named_adapter(litgpt) if litgpt.exists() else find_adapter(root, _holds_factors)


def _folder_of(place: AdapterPlace, root: Path) -> Path:
    """Return the folder that the adapter may not leave: the named one, or that of a named file."""
    return root if root.is_dir() else place.file.parent


def _read_from(place: AdapterPlace, root: Path) -> list[Path]:
    """List what is read of an adapter, but for a file that the user has named and may be a link."""
    beside = [place.file.with_name(name) for name in _BESIDE]
    found = [place.file, *place.chosen.files, *filter(os.path.lexists, beside)]
    return [path for path in found if path != root]


def _holds_factors(found: WeightSet) -> bool:
    """Return whether factors are among the names; False for weights that cannot be read."""
    with suppress(InputError):
        names = [ref.spec.name for shard in read_weights(found) for ref in shard.tensors]
        return any(_FACTOR.search(name) for name in names)
    return False


def _locate(path: Path) -> Path:
    """Return the path itself, or the cached files of the repository that it names."""
    if path.exists():
        return path
    if snapshot := cached_snapshot(path):
        return snapshot
    hint = _near_names(path)
    if not hint and not _names_weights(path.name) and is_repository_name(path):
        hint = f"not in the local Hugging Face cache either: hf download {path}"
    raise InputError(
        "no such file or folder", where=str(path), hint=hint, cause="input/missing-file"
    )


def _names_weights(name: str) -> bool:
    """Return whether a name ends as a weight file's does, which a repository's hardly would."""
    return name.lower().endswith(TORCH_SUFFIXES)


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    # difflib compares two names letter by letter. Those of nearly the same length come first.
    names = sorted(
        (item.name for item in path.parent.iterdir()),
        key=lambda name: abs(len(name) - len(path.name)),
    )
    near = difflib.get_close_matches(path.name, names[:_COMPARED], n=3, cutoff=_NEAR)
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""


def _base_file(folder: Path) -> Path:
    """Return the weights that transformers would load, or the only ones under another name."""
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


def _read_folder(folder: Path, file: Path, *, follow_links: bool) -> Checkpoint:
    side_files = list_side_files(folder, follow_links=follow_links)
    config_path = folder / "config.json"
    config = read_json_object(config_path, tagged_floats=True) if config_path.exists() else {}
    if not file.name.endswith(INDEX_SUFFIX):
        return Checkpoint(folder, "folder", (read_shard(file),), side_files, config)
    shards, metadata = read_sharded(file, follow_links=follow_links)
    return Checkpoint(folder, "folder", shards, side_files, config, metadata, file.name)
