"""Which file of a folder is the adapter, as PEFT and trainers leave such folders behind.

A folder may hold an adapter in two formats, several adapters in sub-folders named after them, or
the checkpoints of a training. What cannot be told apart for certain is refused, with what to name.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.files import fail_on, read_json_object
from lora_export.checkpoint.hf_cache import repository_of
from lora_export.checkpoint.side_files import ADAPTER_CONFIG, is_torch_weights
from lora_export.errors import InputError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
"""As PEFT writes an adapter's weights; the first that is there is the one PEFT loads."""
_TRAINING_STARTS = ("optimizer", "scheduler", "rng_state", "scaler", "training_args")
_PEFT_START = "base_model.model."
_NUMBERED = re.compile(r"(.*-)([0-9]{1,18})", re.DOTALL)
_MAX_DEPTH = 2
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """The weight file that was chosen, and why, where there was a choice."""

    file: Path
    notes: tuple[str, ...] = ()


def find_adapter(folder: Path) -> AdapterPlace:
    """The adapter that `folder` holds itself, or the only one in a sub-folder.

    Raises:
        InputError: there is none, or several of which one must be named.
    """
    named = [folder / name for name in ADAPTER_NAMES if os.path.lexists(folder / name)]
    if named:
        return _chosen(folder, named)
    nested = _nested(folder)
    if (folder / ADAPTER_CONFIG).exists():
        raise _without_weights(folder, nested)
    files = weight_files_here(folder)
    if len(files) == 1 and not nested:
        return AdapterPlace(files[0])
    if len(nested) == 1 and not files:
        inner = find_adapter(nested[0])
        note = f"{folder.name}: its only adapter lies in {_relative(nested[0], folder)}"
        return AdapterPlace(inner.file, (note, *inner.notes))
    if nested:
        raise _several(folder, nested)
    if files:
        raise no_single_file(folder, "holds several weight files", "name the adapter's file itself")
    raise no_single_file(folder, "holds no weight file", "")


def _chosen(folder: Path, named: list[Path]) -> AdapterPlace:
    """Of both formats, safetensors, as PEFT does; a link that leads nowhere is none."""
    if not named[0].exists():
        hint = "fetch or copy the adapter again"
        raise InputError("a symbolic link that leads nowhere", where=str(named[0]), hint=hint)
    notes = []
    if len(named) > 1:
        notes.append(f"{folder.name}: read {named[0].name}, as PEFT does, and not {named[1].name}")
    others = [name for name in _names(_nested(folder), folder) if "checkpoint-" not in name]
    if others:
        notes.append(f"{folder.name}: took its own adapter, and not {' or '.join(others[:3])}")
    return AdapterPlace(named[0], tuple(notes))


def _without_weights(folder: Path, nested: list[Path]) -> InputError:
    message = f"{ADAPTER_CONFIG} is there, but neither {' nor '.join(ADAPTER_NAMES)}"
    repository = repository_of(folder)
    if repository:
        hint = f"it was not fetched whole: hf download {repository}"
    elif nested:
        hint = f"did you mean {' or '.join(str(path) for path in nested[:3])}?"
    else:
        hint = "the weights were not copied, or training was stopped before it saved them"
    return no_single_file(folder, message, hint)


def _several(folder: Path, nested: list[Path]) -> InputError:
    names = _names(nested, folder)
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return InputError(
        f"holds {len(names)} adapters in sub-folders: {', '.join(names[:_SHOWN])}{more}",
        where=str(folder),
        hint=f"name the one that is meant, for example {nested[-1]}",
    )


def _nested(folder: Path) -> list[Path]:
    """The sub-folders that hold an adapter, checkpoints in the order of their steps."""
    found = [path.parent for path in _walk(folder, 1)]
    return sorted(dict.fromkeys(found), key=lambda path: _order(path.relative_to(folder).parts))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from (path / name for name in ADAPTER_NAMES if os.path.lexists(path / name))
            if depth < _MAX_DEPTH:
                yield from _walk(path, depth + 1)


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


def weight_files_here(folder: Path) -> list[Path]:
    """The torch weight files of a folder, without what only training needs."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and is_torch_weights(path)
        and not path.name.startswith((*_TRAINING_STARTS, "."))
    )


def no_single_file(folder: Path, message: str, hint: str) -> InputError:
    """The refusal of a folder in which no one file is meant; tells what it holds."""
    names = sorted(item.name for item in folder.iterdir())
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
    return InputError(f"{message}; it holds: {listed or 'nothing'}", where=str(folder), hint=hint)


def read_adapter_config(file: Path) -> dict[str, object]:
    """adapter_config.json beside the weight file, empty where there is none.

    Raises:
        InputError: it is broken, or holds a key twice or a number that JSON has not, so that two
            readers could understand it differently.
    """
    path = file.parent / ADAPTER_CONFIG
    if not os.path.lexists(path):
        return {}
    config = read_json_object(path, unique_keys=True)
    fail_on([Problem(f"{key} is no finite number", str(path)) for key in _not_finite(config, "")])
    return config


def _not_finite(value: object, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def refuse_without_config(
    file: Path, names: Iterable[str], config: Mapping[str, object], metadata: Mapping[str, str]
) -> None:
    """Refuse PEFT's weights without PEFT's configuration.

    Raises:
        InputError: so it is.
    """
    if config or metadata.get("lora_adapter_metadata"):
        return
    if any(name.startswith(_PEFT_START) and ".lora_" in name for name in names):
        raise InputError(
            f"a PEFT adapter without its {ADAPTER_CONFIG}: alpha, and how the scaling is made of "
            "it, are not in the weights, and they are never guessed",
            where=str(file),
            hint=f"put the {ADAPTER_CONFIG} that was saved with it into {file.parent}",
        )
