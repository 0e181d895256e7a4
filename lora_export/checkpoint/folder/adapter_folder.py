"""Which file of a folder is the adapter, as PEFT and trainers leave such folders behind.

A folder may hold an adapter in two formats, several adapters in sub-folders named after them, or
the checkpoints of a training. What cannot be told apart for certain is refused, with what to name.
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
"""As PEFT writes an adapter's weights; the first that is there is the one PEFT loads."""
_STEM = "adapter_model"
_NUMBERED = re.compile(r"(.*-)([0-9]{1,18})", re.DOTALL)
_MAX_DEPTH = 2
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """The weights that were chosen, and why, where there was a choice."""

    chosen: WeightSet
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """The weight file, or the index of its shards."""
        return self.chosen.index or self.chosen.files[0]


def find_adapter(folder: Path, holds_factors: Callable[[WeightSet], bool]) -> AdapterPlace:
    """The adapter that `folder` holds itself, or the only one in a sub-folder.

    holds_factors: looks into weights whose name does not say what they are.

    Raises:
        InputError: there is none, or several of which one must be named.
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
        hint = elsewhere(folder) or "name the adapter's file itself"
        raise no_single_file(folder, "holds several weight files", hint)
    raise no_single_file(folder, "holds no weight file", elsewhere(folder))


def named_adapter(file: Path) -> AdapterPlace:
    """The adapter that a path to a file or an index means.

    Raises:
        InputError: the file is one of several shards, which hold the adapter together.
    """
    place = shard_number(file.name)
    if place and place[1] > 1:
        number, count = place
        whole = [one for one in weight_sets(file.parent) if file in one.files and one.index]
        hint = f"name {whole[0].index if whole else f'the folder {file.parent}'}"
        message = f"is shard {number} of {count}, a part of the adapter"
        raise InputError(message, where=str(file), hint=hint)
    return AdapterPlace(set_of(file))


def beside(place: AdapterPlace) -> tuple[WeightSet, ...]:
    """All other weights in the folder of an adapter, and in its sub-folders of further modules.

    Those are the modules that sentence-transformers runs after the adapted one, as 2_Dense.
    """
    folder, taken = place.file.parent, set(place.chosen.files)
    found = list(weight_sets(folder, every_bin=True))
    for name in sorted(module_folders(folder)):
        if (folder / name).is_dir():
            inside = weight_sets(folder / name)
            found += [replace(one, name=f"{name}/{one.name}") for one in inside]
    return tuple(one for one in found if not taken & set(one.files))


def unread(folder: Path) -> list[str]:
    """A note on each file beside an adapter that holds weights of another framework."""
    names = sorted(path.name for path in folder.iterdir() if is_foreign_weights(path))
    return [f"{name} beside the adapter is of another framework, and not read" for name in names]


def _is_named(found: WeightSet) -> bool:
    """Whether PEFT or transformers would give an adapter's weights these names.

    transformers 5 shards an adapter under the name of a model's index.
    """
    return bool(found.files) and all(_is_adapter_name(path.name) for path in found.files)


def _is_adapter_name(name: str) -> bool:
    is_shard = name.startswith(f"{_STEM}-") and shard_number(name) is not None
    return name in ADAPTER_NAMES or is_shard


def _in_order(sets: Iterable[WeightSet]) -> list[WeightSet]:
    """As PEFT looks for them: safetensors before .bin; one file before shards."""
    return sorted(sets, key=lambda one: (not _is_safetensors(one), len(one.files), one.name))


def _is_safetensors(found: WeightSet) -> bool:
    return all(path.name.endswith(".safetensors") for path in found.files)


def _chosen(folder: Path, named: list[WeightSet]) -> AdapterPlace:
    """Of both formats, safetensors, as PEFT does; a link that leads nowhere is none."""
    if dangling := [path for path in named[0].files if path.is_symlink() and not path.exists()]:
        hint = "fetch or copy the adapter again"
        raise InputError("a symbolic link that leads nowhere", where=str(dangling[0]), hint=hint)
    notes = []
    if len(named) > 1:
        notes.append(f"{folder.name}: read {named[0].name}, as PEFT does, and not {named[1].name}")
    others = [name for name in _names(_nested(folder), folder) if "checkpoint-" not in name]
    if others:
        notes.append(f"{folder.name}: took its own adapter, and not {' or '.join(others[:3])}")
    return AdapterPlace(named[0], tuple(notes))


def _of_another_name(
    folder: Path,
    sets: Sequence[WeightSet],
    nested: list[Path],
    holds_factors: Callable[[WeightSet], bool],
) -> AdapterPlace:
    """The weights beside a configuration: the only ones, or the only ones that hold factors."""
    found = list(sets) if len(sets) == 1 else [one for one in sets if holds_factors(one)]
    if len(found) == 1:
        note = f"{folder.name}: {found[0].name} is read as the adapter's weights"
        return AdapterPlace(found[0], (note,))
    if not sets:
        raise _without_weights(folder, nested)
    names = ", ".join(one.name for one in (found or sets))
    what = "each of which holds low-rank factors" if found else "none of which holds factors"
    hint = f"name the adapter's file itself, for example {(found or sets)[0].files[0]}"
    raise no_single_file(folder, f"{ADAPTER_CONFIG} lies beside {names}, {what}", hint)


def _without_weights(folder: Path, nested: list[Path]) -> InputError:
    message = f"{ADAPTER_CONFIG} is there, but neither {' nor '.join(ADAPTER_NAMES)}"
    repository = repository_of(folder)
    if repository:
        hint = f"it was not fetched whole: hf download {repository}"
    elif nested:
        hint = f"did you mean {' or '.join(str(path) for path in nested[:3])}?"
    else:
        hint = elsewhere(folder)
    usual = "the weights were not copied, or training was stopped before it saved them"
    return no_single_file(folder, message, hint or usual)


def _several(folder: Path, nested: list[Path]) -> InputError:
    names = _names(nested, folder)
    return InputError(
        f"holds {len(names)} adapters in sub-folders: {first_names(names, _SHOWN)}",
        where=str(folder),
        hint=f"name the one that is meant, for example {nested[-1]}",
    )


def _nested(folder: Path) -> list[Path]:
    """The sub-folders that hold an adapter, checkpoints in the order of their steps."""
    found = [path for path in _walk(folder, 1) if _is_adapter(path)]
    return sorted(found, key=lambda path: _order(path.relative_to(folder).parts))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield path
            if depth < _MAX_DEPTH:
                yield from _walk(path, depth + 1)


def _is_adapter(folder: Path) -> bool:
    """By the names of its weights, or by a configuration beside any weights."""
    names = [path.name for path in folder.iterdir()]
    return any(map(_is_adapter_name, names)) or (ADAPTER_CONFIG in names and holds_weights(folder))


def _order(parts: Iterable[str]) -> list[tuple[str, int]]:
    """checkpoint-90 before checkpoint-500."""
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
    """The refusal of a folder in which no one file is meant; tells what it holds."""
    names = sorted(item.name for item in folder.iterdir())
    listed = first_names(names, 20) or "nothing"
    return InputError(f"{message}; it holds: {listed}", where=str(folder), hint=hint)
