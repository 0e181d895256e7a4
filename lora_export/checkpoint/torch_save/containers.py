"""Finds the state dict inside what torch.save was given: bare, wrapped, or in training state.

Names and structure alone decide. A file with several candidates is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lora_export.checkpoint.torch_save.inert import Opaque
from lora_export.checkpoint.torch_save.torch_values import StoredTensor, is_module, is_tensor_like
from lora_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

WRAPPERS = ("model_state_dict", "state_dict", "model", "module", "net", "weights", "params")
"""Keys under which training scripts put the weights."""

IGNORED_STARTS = ("optim", "scheduler", "lr_scheduler", "ema")
"""How keys of training state begin; it is only searched when nothing else holds tensors."""

MAX_DEPTH = 4
"""How many mappings deep the state dict is looked for."""

NOT_RUN = "nothing of it was imported or run"
"""The end of every message about a pickle that names code."""

_SHOWN = 5

Where: TypeAlias = "tuple[str, ...]"
"""The keys that lead to a mapping."""

Level: TypeAlias = "Mapping[object, object]"
"""One mapping of the pickled object."""


class NoTensorsError(InputError):
    """A file that holds plain values and no tensor at all: leaving it out loses no weight."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """The mapping that holds the weights."""

    entries: Level
    wrapper: str
    """The keys that lead to the mapping, joined by dots; "" when it is the whole object."""


def choose_state_dict(root: object, path: Path) -> StateDict:
    """Find the state dict in an unpickled object (StoredTensor and Opaque values, containers).

    Raises:
        InputError: there is none, a whole module was pickled, or there are several candidates;
            these are listed with their numbers of tensors.
        NoTensorsError: the object holds plain values only.
    """
    _check_root(root, path)
    level: Level = root if isinstance(root, dict) else {}
    where: Where = ()
    while (step := _descend(level, where, path)) is not None:
        level, where = step
    return StateDict(level, ".".join(where))


def _check_root(root: object, path: Path) -> None:
    if is_module(root):
        raise InputError(
            f"a whole pickled module ({getattr(root, 'name', '?')}), not a state dict",
            where=str(path),
            hint="save model.state_dict() instead of the model",
            cause="input/no-weights",
        )
    if not isinstance(root, dict):
        kind = getattr(root, "name", type(root).__name__)
        not_run = f"; {NOT_RUN}" if isinstance(root, Opaque) else ""
        raise InputError(
            f"holds one {kind}, not a state dict{not_run}",
            where=str(path),
            cause="input/no-weights",
        )


def _descend(level: Level, where: Where, path: Path) -> tuple[Level, Where] | None:
    """Return the level below that holds the weights; None when this level does."""
    wrapped = {
        (*where, key): value
        for key in WRAPPERS
        if isinstance(value := level.get(key), dict) and count_tensors(value)
    }
    candidates = wrapped or _tensor_mappings(level, where)
    direct = direct_tensors(level)
    is_weights = any(_is_parameter_name(name) for name in direct)
    if is_weights and wrapped:
        _refuse_several({where or ("(top level)",): level, **wrapped}, path)
    if is_weights or (direct and not candidates):
        return None
    if not candidates or len(where) > 2 * MAX_DEPTH:
        _refuse_empty(level, where, path)
    (place, chosen), *others = candidates.items()
    if any(not _is_same(chosen, other) for _, other in others):
        _refuse_several(candidates, path)
    return chosen, place


def _is_same(level: Level, other: Level) -> bool:
    """Return whether two mappings directly hold the same tensors under the same names."""
    names = direct_tensors(level)
    return level is other or (
        bool(names)
        and names == direct_tensors(other)
        and all(level[name] == other[name] for name in names)
    )


def direct_tensors(level: Level) -> list[object]:
    """Return the keys of the tensors that lie directly in a mapping, unreadable ones included."""
    return [
        key for key, item in level.items() if isinstance(item, StoredTensor) or is_tensor_like(item)
    ]


def _is_parameter_name(key: object) -> bool:
    """Return whether a key names a weight, not a loss, step counter or random state."""
    return isinstance(key, str) and ("." in key or key in {"weight", "bias"})


def _tensor_mappings(level: Level, where: Where) -> dict[Where, Level]:
    """Return every mapping down to MAX_DEPTH that holds tensors.

    Training state is only returned when there is nothing else.
    """
    found = dict(_walk(level, where, set(), {}))
    weights = {place: item for place, item in found.items() if not _is_in_training_state(place)}
    return weights or found


def _walk(
    level: Level, where: Where, seen: set[int], known: dict[int, bool]
) -> Iterator[tuple[Where, Level]]:
    """Yield each mapping below that directly holds tensors, with the keys that lead to it.

    known: whether a mapping holds tensors, by id. A hostile file may hold one mapping under
    thousands of keys.
    """
    if len(where) >= MAX_DEPTH or id(level) in seen:
        return
    seen.add(id(level))
    for key, value in level.items():
        if not isinstance(value, dict):
            continue
        if id(value) not in known:
            known[id(value)] = bool(direct_tensors(value))
        if known[id(value)]:
            yield (*where, key_text(key)), value
        else:
            yield from _walk(value, (*where, key_text(key)), seen, known)


def _is_in_training_state(where: Where) -> bool:
    return any(key.lower().startswith(IGNORED_STARTS) for key in where)


def key_text(key: object) -> str:
    """Return a key for messages, cut short; an int of a hostile file may be too long to print."""
    return key[:200] if isinstance(key, str) else repr(key)[:200] if is_short(key) else "?"


def is_short(value: object) -> bool:
    """Return whether a value is a scalar that can be written out in a message."""
    if isinstance(value, int):
        return abs(value) < 2**64
    return isinstance(value, (str, float))


def is_training_key(key: object) -> bool:
    """Return whether a key names state of training: optimizer, schedule, moving averages."""
    return isinstance(key, str) and _is_in_training_state((key,))


def count_tensors(value: object, seen: set[int] | None = None) -> int:
    """Count the tensors anywhere below a value, each container once.

    seen: ids of containers that were counted before; it grows.
    """
    total, waiting, seen = 0, [value], set() if seen is None else seen
    while waiting:
        item = waiting.pop()
        if isinstance(item, StoredTensor) or is_tensor_like(item):
            total += 1
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return total


def _refuse_several(candidates: Mapping[Where, Level], path: Path) -> None:
    # Counting is work: thousands of mappings can share one long list.
    shown = list(candidates.items())[:_SHOWN]
    listed = ", ".join(f"{'.'.join(at)} ({count_tensors(value)})" for at, value in shown)
    more = f" and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
    raise InputError(
        f"several state dicts, with their numbers of tensors: {listed}{more}"[:2000],
        where=str(path),
        hint="save the right one in a file of its own",
        cause="input/several-state-dicts",
    )


def _refuse_empty(level: Level, where: Where, path: Path) -> None:
    keys = ", ".join(key_text(key) for key in list(level)[:20]) or "none"
    inside = f" under {'.'.join(where)}" if where else ""
    foreign = sorted({item.name[:200] for item in level.values() if isinstance(item, Opaque)})
    named = f"; it names {', '.join(foreign[:5])}: {NOT_RUN}" if foreign else ""
    is_plain = not where and not foreign and not count_tensors(level)
    kind = NoTensorsError if is_plain else InputError
    message = f"holds no tensors{inside}; its keys: {keys}{named}"
    raise kind(message, where=str(path), cause="input/no-weights")
