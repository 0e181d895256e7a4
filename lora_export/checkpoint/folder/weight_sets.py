"""Finds the weight files of one folder, each with the shards that belong to it.

Trainers leave trained tensors in files of any name. The kind of a file decides, and only files that
are known to serve training alone are left out.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, TypeGuard

from lora_export.checkpoint.folder.side_files import (
    TORCH_SUFFIXES,
    is_torch_weights,
    manifest_beside,
)
from lora_export.checkpoint.reading import PICKLE_START, ZIP_START, read_json_object, read_start
from lora_export.errors import StorageError
from lora_export.records import WeightSet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INDEX_SUFFIX = ".index.json"
_TRAINING = re.compile(
    r"(?:optimizer|optim|scheduler|lr_scheduler|rng_state|random_states|scaler|grad_scaler|"
    r"training_args|trainer_state|sampler|dl_state_dict|dataloader|recipe_state|custom_checkpoint)"
    r"(?:[._-].*|\d.*)?"
)
"""Names of files with state of transformers' Trainer, of Accelerate and of torchtune."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[^.]+)")
_NAME_LENGTH, _NAME = slice(26, 28), 30
"""Where a zip file holds the length of its first entry's name, and where the name begins."""


def is_training_state(name: str) -> bool:
    """Return whether a file, by its name, holds state of training: optimizer, schedule, random."""
    return _TRAINING.fullmatch(name.lower()) is not None


def weight_sets(folder: Path, *, every_bin: bool = False) -> list[WeightSet]:
    """List the weight files of `folder` itself, shards as one set, sorted by name.

    every_bin: list .bin files of unknown content too; they may be damaged weights.

    Left out: hidden files, state of training, files with a manifest of their own beside them
    (results of this program), and formats of other frameworks. A link that leads nowhere is
    listed, so that reading it fails instead of losing it.

    Raises:
        InputError: an index is no JSON object.
        StorageError: the folder cannot be read.
    """
    files = {
        path.name: path
        for path in sorted(folder.iterdir())
        if _is_weights(path) or (every_bin and _is_unread(path))
    }
    sets = [_indexed(path, files) for path in sorted(folder.glob(f"*{INDEX_SUFFIX}"))]
    found = [one for one in sets if one is not None]
    taken = {file for one in found for file in one.files}
    alone: dict[str, list[Path]] = {}
    for path in files.values():
        if path not in taken:
            alone.setdefault(_set_name(path.name), []).append(path)
    found += [WeightSet(name, tuple(paths)) for name, paths in alone.items()]
    return sorted(found, key=lambda one: one.name)


def holds_weights(folder: Path) -> bool:
    """Return whether a weight file lies in `folder` itself."""
    return any(_is_weights(path) for path in folder.iterdir())


def set_of(file: Path) -> WeightSet:
    """Return the set of one weight file, or of an index.

    Raises:
        InputError: the index is no JSON object.
    """
    if not file.name.endswith(INDEX_SUFFIX):
        return WeightSet(file.name, (file,))
    return _indexed(file, {}) or WeightSet(file.name, (), file)


def shard_number(name: str) -> tuple[int, int] | None:
    """Return (number, count) of a shard, by its name; None for another file."""
    match = _SHARD.fullmatch(name)
    return (int(match["number"]), int(match["count"])) if match else None


def _set_name(name: str) -> str:
    """Return the name of the set that a file belongs to; a glob for shards without an index."""
    match = _SHARD.fullmatch(name)
    return f"{match['stem']}-*-of-{match['count']}{match['suffix']}" if match else name


def _indexed(index: Path, files: Mapping[str, Path]) -> WeightSet | None:
    """Return the set of an index of torch weights; None for any other JSON of that name."""
    weight_map = read_json_object(index).get("weight_map")
    names = set(weight_map.values()) if _is_map(weight_map) else set()
    if not any(name.lower().endswith(TORCH_SUFFIXES) for name in names):
        return None
    listed = (files.get(name, index.parent / name) for name in sorted(names))
    return WeightSet(index.name, tuple(listed), index)


def _is_map(value: object) -> TypeGuard[Mapping[str, str]]:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or is_training_state(name)


def _is_weights(path: Path) -> bool:
    name = path.name
    if _is_left_out(name):
        return False
    if not path.exists():
        return name.lower().endswith(TORCH_SUFFIXES)
    if not path.is_file() or path.with_name(manifest_beside(path)).exists():
        return False
    with suppress(StorageError):  # a file that cannot be opened: its reader reports it
        return is_torch_weights(path) or _is_torch_archive(path)
    return name.lower().endswith(TORCH_SUFFIXES)


def _is_unread(path: Path) -> bool:
    """Return whether a file is a .bin of unknown content; the reader of weights refuses it."""
    name = path.name.lower()
    other = _is_left_out(name) or name.startswith("openvino")
    return name.endswith(".bin") and path.is_file() and not other


def _is_torch_archive(path: Path) -> bool:
    """Return whether a file is an archive of torch.save, whatever its name.

    The first entry of such a zip file is data.pkl. A file of torch's older format counts only with
    Lightning's suffix .ckpt, because every pickle begins like it.
    """
    start = read_start(path, 512)
    if not start.startswith(ZIP_START):
        return start.startswith(PICKLE_START) and path.suffix == ".ckpt"
    length = int.from_bytes(start[_NAME_LENGTH], "little")
    return start[_NAME : _NAME + length].endswith(b"/data.pkl")


def missing_shards(found: WeightSet) -> Sequence[str]:
    """Return the names of the missing shards of a set without an index; none for another set."""
    match = _SHARD.fullmatch(found.files[0].name) if found.files and not found.index else None
    if match is None:
        return ()
    numbers = range(1, int(match["count"]) + 1)
    ending = f"-of-{match['count']}{match['suffix']}"
    names = {f"{match['stem']}-{number:05d}{ending}" for number in numbers}
    return sorted(names - {file.name for file in found.files})
