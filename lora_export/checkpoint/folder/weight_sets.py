"""The weight files of one folder, each with the shards that belong to it.

Trainers leave trained tensors in files of any name, so files are taken by what they are, and only
what is known to serve training alone is passed over.
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
from lora_export.checkpoint.reading import read_json_object, read_start
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
"""State of a Trainer, of Accelerate and of torchtune, by the start of its file's name."""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[^.]+)")
_ZIP_START = b"PK\x03\x04"
_NAME_LENGTH, _NAME = slice(26, 28), 30  # of the first entry, in a zip file


def is_training_state(name: str) -> bool:
    """Whether a file, by its name, holds what only training needs: optimizer, schedule, random."""
    return _TRAINING.fullmatch(name.lower()) is not None


def weight_sets(folder: Path, *, every_bin: bool = False) -> list[WeightSet]:
    """Every weight file of `folder` itself, shards as one set, by name.

    every_bin: also .bin files of no known content, which may be damaged weights.

    Left out: hidden files, what only training needs, files beside which their own manifest lies
    (results of this tool), and formats of other frameworks. A link that leads nowhere counts, so
    that it is not lost.

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
    """Whether a weight file lies in `folder` itself."""
    return any(_is_weights(path) for path in folder.iterdir())


def set_of(file: Path) -> WeightSet:
    """The set that a file alone is, or that an index names."""
    if not file.name.endswith(INDEX_SUFFIX):
        return WeightSet(file.name, (file,))
    return _indexed(file, {}) or WeightSet(file.name, (), file)


def shard_number(name: str) -> tuple[int, int] | None:
    """(number, count) of a file that is one of several shards, by its name."""
    match = _SHARD.fullmatch(name)
    return (int(match["number"]), int(match["count"])) if match else None


def _set_name(name: str) -> str:
    """The name of the set that a file belongs to; a glob for shards without an index."""
    match = _SHARD.fullmatch(name)
    return f"{match['stem']}-*-of-{match['count']}{match['suffix']}" if match else name


def _indexed(index: Path, files: Mapping[str, Path]) -> WeightSet | None:
    """The set of an index of torch weights; None for any other JSON of that name."""
    weight_map = read_json_object(index).get("weight_map")
    names = set(weight_map.values()) if _is_map(weight_map) else set()
    if not any(name.lower().endswith(TORCH_SUFFIXES) for name in names):
        return None
    listed = (files.get(name, index.parent / name) for name in sorted(names))
    return WeightSet(index.name, tuple(listed), index)


def _is_map(value: object) -> TypeGuard[Mapping[str, str]]:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or is_training_state(name)


def _is_weights(path: Path) -> bool:
    name = path.name
    if _is_passed_over(name):
        return False
    if not path.exists():
        return name.lower().endswith(TORCH_SUFFIXES)
    if not path.is_file() or path.with_name(manifest_beside(path)).exists():
        return False
    with suppress(StorageError):  # what cannot be opened is told where it is read, or is no weight
        return is_torch_weights(path) or _is_torch_archive(path)
    return name.lower().endswith(TORCH_SUFFIXES)


def _is_unread(path: Path) -> bool:
    """A .bin of no known content; the reader of weights refuses it by name."""
    name = path.name.lower()
    other = _is_passed_over(name) or name.startswith("openvino")
    return name.endswith(".bin") and path.is_file() and not other


def _is_torch_archive(path: Path) -> bool:
    """A zip file of torch.save, whatever its name: its first entry is the pickle of the rest.

    Of torch's older format, Lightning's .ckpt alone: any pickle begins so.
    """
    start = read_start(path, 512)
    if not start.startswith(_ZIP_START):
        return start.startswith(b"\x80") and path.suffix == ".ckpt"
    length = int.from_bytes(start[_NAME_LENGTH], "little")
    return start[_NAME : _NAME + length].endswith(b"/data.pkl")


def missing_shards(found: WeightSet) -> Sequence[str]:
    """The names of shards that are not there, of a set without an index."""
    match = _SHARD.fullmatch(found.files[0].name) if found.files and not found.index else None
    if match is None:
        return ()
    numbers = range(1, int(match["count"]) + 1)
    ending = f"-of-{match['count']}{match['suffix']}"
    names = {f"{match['stem']}-{number:05d}{ending}" for number in numbers}
    return sorted(names - {file.name for file in found.files})
