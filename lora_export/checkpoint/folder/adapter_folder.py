"""Finds the adapter in a folder as PEFT and trainers leave it behind.

A folder may hold an adapter in two formats, several adapters in sub-folders, or the checkpoints of
a training. An ambiguous folder is refused, and the message names the candidates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.elsewhere import elsewhere
from lora_export.checkpoint.folder.hf_cache import repository_of
from lora_export.checkpoint.folder.side_files import (
    ADAPTER_CONFIG,
    is_foreign_weights,
    module_folders,
)
from lora_export.checkpoint.folder.weight_sets import (
    holds_weights,
    set_of,
    shard_number,
    weight_sets,
)
from lora_export.errors import InputError
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from lora_export.records import WeightSet

ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
"""The names that PEFT gives an adapter's weights; of two files PEFT loads the first."""

_STEM = "adapter_model"
_NUMBERED = re.compile(r"(.*-)([0-9]{1,18})", re.DOTALL)
_MAX_DEPTH = 2
"""How many folders deep an adapter is looked for."""

_SHOWN = 8
_SHOWN_FILES = 20


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """The weights of the adapter that was found."""

    chosen: WeightSet
    notes: tuple[str, ...] = ()
    """How the weights were chosen of several, for the user."""

    @property
    def file(self) -> Path:
        """Return the weight file, or the index of its shards."""
        return self.chosen.index or self.chosen.files[0]


def find_adapter(folder: Path, holds_factors: Callable[[WeightSet], bool]) -> AdapterPlace:
    """Find the adapter that `folder` holds itself, or the only one in a sub-folder.

    holds_factors: reads the names in weights whose file name is no adapter's.

    Raises:
        InputError: there is none, or there are several.
        StorageError: the folder cannot be read.
    """
    sets = weight_sets(folder)
    named = [one for one in _in_order(sets) if _is_named(one)]
    if named:
        return _chosen(folder, named)
    nested = _nested(folder)
    if (folder / ADAPTER_CONFIG).exists():
        return _of_another_name(folder, sets, nested, holds_factors)
    if len(sets) == 1 and not nested:
        return AdapterPlace(sets[0])
    if len(nested) == 1 and not sets:
        inner = find_adapter(nested[0], holds_factors)
        note = f"{folder.name}: its only adapter lies in {_relative(nested[0], folder)}"
        return AdapterPlace(inner.chosen, (note, *inner.notes))
    if nested:
        raise _several(folder, nested)
    if sets:
        hint = elsewhere(folder) or "give the path of the adapter's file"
        raise no_single_file(folder, "holds several weight files", hint)
    raise no_single_file(folder, "holds no weight file", elsewhere(folder))


def named_adapter(file: Path) -> AdapterPlace:
    """Return the adapter that a path to a file or an index means.

    Raises:
        InputError: the file is one of several shards.
    """
    place = shard_number(file.name)
    if place and place[1] > 1:
        number, count = place
        whole = [one for one in weight_sets(file.parent) if file in one.files and one.index]
        hint = f"give {whole[0].index if whole else f'the folder {file.parent}'}"
        message = f"is shard {number} of {count}, a part of the adapter"
        raise InputError(message, where=str(file), hint=hint, cause="input/adapter-folder")
    return AdapterPlace(set_of(file))


def beside(place: AdapterPlace) -> tuple[WeightSet, ...]:
    """List all other weights in an adapter's folder, and in its sub-folders of further modules.

    sentence-transformers runs such modules after the adapted one, for example 2_Dense.
    """
    folder, taken = place.file.parent, set(place.chosen.files)
    found = list(weight_sets(folder, every_bin=True))
    for name in sorted(module_folders(folder)):
        if (folder / name).is_dir():
            inside = weight_sets(folder / name)
            found += [replace(one, name=f"{name}/{one.name}") for one in inside]
    return tuple(one for one in found if not taken & set(one.files))


def foreign_notes(folder: Path) -> list[str]:
    """Return a note on each file in the folder that holds weights of another framework."""
    names = sorted(path.name for path in folder.iterdir() if is_foreign_weights(path))
    return [f"{name} beside the adapter is of another framework and not read" for name in names]


def _is_named(found: WeightSet) -> bool:
    """Return whether PEFT or transformers would give an adapter's weights these names.

    The names of the shards decide. transformers 5 gives the index of an adapter a model's name.
    """
    return bool(found.files) and all(_is_adapter_name(path.name) for path in found.files)


def _is_adapter_name(name: str) -> bool:
    is_shard = name.startswith(f"{_STEM}-") and shard_number(name) is not None
    return name in ADAPTER_NAMES or is_shard


def _in_order(sets: Iterable[WeightSet]) -> list[WeightSet]:
    """Sort sets as PEFT looks for them: safetensors before .bin, one file before shards."""
    return sorted(sets, key=lambda one: (not _is_safetensors(one), len(one.files), one.name))


def _is_safetensors(found: WeightSet) -> bool:
    return all(path.name.endswith(".safetensors") for path in found.files)


def _chosen(folder: Path, named: list[WeightSet]) -> AdapterPlace:
    """Return the first set, with notes on the ones passed over.

    Raises:
        InputError: a file of it is a link that leads nowhere. The next set may be an older state.
    """
    if dangling := [path for path in named[0].files if path.is_symlink() and not path.exists()]:
        hint = "fetch or copy the adapter again"
        raise InputError(
            "a symbolic link that leads nowhere",
            where=str(dangling[0]),
            hint=hint,
            cause="input/missing-file",
        )
    notes = []
    if len(named) > 1:
        notes.append(f"{folder.name}: read {named[0].name}, as PEFT does, not {named[1].name}")
    others = [name for name in _names(_nested(folder), folder) if "checkpoint-" not in name]
    if others:
        notes.append(f"{folder.name}: took its own adapter, not {' or '.join(others[:3])}")
    return AdapterPlace(named[0], tuple(notes))


def _of_another_name(
    folder: Path,
    sets: Sequence[WeightSet],
    nested: list[Path],
    holds_factors: Callable[[WeightSet], bool],
) -> AdapterPlace:
    """Return the weights beside a config: the only ones, or the only ones that hold factors.

    Raises:
        InputError: there are none, or several.
    """
    found = list(sets) if len(sets) == 1 else [one for one in sets if holds_factors(one)]
    if len(found) == 1:
        note = f"{folder.name}: {found[0].name} is read as the adapter's weights"
        return AdapterPlace(found[0], (note,))
    if not sets:
        raise _without_weights(folder, nested)
    names = ", ".join(one.name for one in (found or sets))
    what = "each of which holds low-rank factors" if found else "none of which holds factors"
    hint = f"give the path of the adapter's file, for example {(found or sets)[0].files[0]}"
    raise no_single_file(folder, f"{ADAPTER_CONFIG} lies beside {names}, {what}", hint)


def _without_weights(folder: Path, nested: list[Path]) -> InputError:
    message = f"{ADAPTER_CONFIG} is there, but neither {' nor '.join(ADAPTER_NAMES)}"
    repository = repository_of(folder)
    if repository:
        hint = f"the download is not complete: hf download {repository}"
    elif nested:
        hint = f"did you mean {' or '.join(str(path) for path in nested[:3])}?"
    else:
        hint = elsewhere(folder)
    usual = "copy the weights too; a training that stops early may not have saved them"
    return no_single_file(folder, message, hint or usual)


def _several(folder: Path, nested: list[Path]) -> InputError:
    names = _names(nested, folder)
    return InputError(
        f"holds {len(names)} adapters in sub-folders: {first_names(names, _SHOWN)}",
        where=str(folder),
        hint=f"give the path of one of them, for example {nested[-1]}",
        cause="input/adapter-folder",
    )


def _nested(folder: Path) -> list[Path]:
    """List the sub-folders that hold an adapter, checkpoints in the order of their steps."""
    found = [path for path in _walk(folder, 1) if _is_adapter(path)]
    return sorted(found, key=lambda path: _order(path.relative_to(folder).parts))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield path
            if depth < _MAX_DEPTH:
                yield from _walk(path, depth + 1)


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder holds weights with an adapter's names, or a config beside weights."""
    names = [path.name for path in folder.iterdir()]
    return any(map(_is_adapter_name, names)) or (ADAPTER_CONFIG in names and holds_weights(folder))


def _order(parts: Iterable[str]) -> list[tuple[str, int]]:
    """Return a key that sorts checkpoint-90 before checkpoint-500."""
    keys = []
    for part in parts:
        numbered = _NUMBERED.fullmatch(part)
        keys.append((numbered[1], int(numbered[2])) if numbered else (part, -1))
    return keys


def _names(folders: Iterable[Path], root: Path) -> list[str]:
    return [_relative(folder, root) for folder in folders]


def _relative(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix()


def no_single_file(folder: Path, message: str, hint: str) -> InputError:
    """Return the refusal of a folder that holds no weights or several; it lists the files there."""
    names = sorted(item.name for item in folder.iterdir())
    held = first_names(names, _SHOWN_FILES) or "nothing"
    return InputError(
        f"{message}; it holds: {held}", where=str(folder), hint=hint, cause="input/adapter-folder"
    )
