"""What a merge, or the filling of a graph, can do wrong to one weight: a table.

Every fault gives the tensors to put in the place of the right ones, by their names on disk; None
where an architecture has no room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from detection.bench import LORALIB, load_state, with_alpha

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from detection.bench import Bench, State

HEAD = 8
"""Rows that make one head of attention."""


def _delta(bench: Bench, name: str) -> Tensor:
    return bench.right[name] - bench.base[name]


def _scaled(factor: float) -> Callable[[Bench, str], State]:
    def plant(bench: Bench, name: str) -> State:
        return {name: bench.base[name] + _delta(bench, name) * factor}

    return plant


def _through(dtype: torch.dtype) -> Callable[[Bench, str], State | None]:
    def plant(bench: Bench, name: str) -> State | None:
        if dtype == bench.dtype:
            return None  # where they are stored
        return {name: bench.right[name].to(dtype).float()}

    return plant


def _transposed(bench: Bench, name: str) -> State:
    """Where it is not square, the numbers are read in the order of the transposed."""
    delta = _delta(bench, name)
    return {name: bench.base[name] + delta.mT.reshape(delta.shape)}


def _shifted(bench: Bench, name: str) -> State:
    """The query's update in the key's place; where they are apart, one head's in the next one's."""
    delta = _delta(bench, name)
    axis = delta.shape.index(max(delta.shape))
    fused = delta.shape[0] != delta.shape[1] and max(delta.shape) % 3 == 0
    step = max(delta.shape) // 3 if fused else HEAD
    return {name: bench.base[name] + delta.roll(step, dims=axis)}


def _applied_twice(bench: Bench, name: str) -> State:
    return {name: bench.right[name] + (bench.last[name] - bench.base[name])}


def _of_another_module(bench: Bench, name: str) -> State | None:
    same = [
        other
        for other in bench.adapted
        if other != name and bench.right[other].shape == bench.right[name].shape
    ]
    return {name: bench.base[name] + _delta(bench, same[-1])} if same else None


def _row_zeroed(bench: Bench, name: str) -> State:
    return {name: bench.right[name].index_fill(0, torch.tensor([3]), 0.0)}


def _column_zeroed(bench: Bench, name: str) -> State:
    return {name: bench.right[name].index_fill(1, torch.tensor([5]), 0.0)}


def _truncated(bench: Bench, name: str) -> State:
    """More bits than any order of adding up can lose: six, or one of half precision."""
    stored = bench.stored[name]
    if stored.dtype == torch.float32:
        return {name: (stored.view(torch.int32) & ~0x3F).view(stored.dtype)}
    return {name: (stored.view(torch.int16) & ~1).view(stored.dtype)}


def _one_element(bench: Bench, name: str) -> State:
    wrong = bench.right[name].clone()
    wrong[4, 6] += wrong.abs().max() * 0.1
    return {name: wrong}


def _one_element_slightly(bench: Bench, name: str) -> State:
    wrong = bench.stored[name].clone()
    wrong[4, 6] *= 1 + (
        2.0**-16 if wrong.dtype == torch.float32 else 4 * torch.finfo(wrong.dtype).eps
    )
    return {name: wrong}


def _other_alpha(bench: Bench, name: str) -> State:
    """The product's own merge with another alpha for this module alone, where PEFT says alphas."""
    if bench.name == LORALIB:
        return _scaled(1.25)(bench, name)
    module = bench.places[name]  # as PEFT's pattern names it
    wrong = with_alpha(bench.adapters[-1], module, 1.25, bench.place())
    state = load_state(bench.carried_out([*bench.adapters[:-1], wrong]))
    return {name: state[name]}


def _untouched(bench: Bench) -> str:
    """A weight of the model's middle that no adapter changes, of two axes."""
    names = [
        name
        for name in bench.base
        if name not in bench.adapted
        and bench.base[name].ndim == 2
        and torch.equal(bench.base[name], bench.right[name])
        and min(bench.base[name].shape) > HEAD
        and "embed" not in name
        and "relative" not in name
    ]
    return names[len(names) // 2] if names else "wte.weight"


def _untouched_changed(bench: Bench, name: str) -> State:
    chosen = _untouched(bench)
    return {chosen: bench.right[chosen] * 1.01}


WEIGHT_FAULTS: dict[str, Callable[[Bench, str], State | None]] = {
    "scaling 0.5 % too large": _scaled(1.005),
    "scaling 2 % too large": _scaled(1.02),
    "scaling 2 % too small": _scaled(0.98),
    "update transposed": _transposed,
    "module skipped": lambda bench, name: {name: bench.base[name]},
    "block shifted": _shifted,
    "adapter applied twice": _applied_twice,
    "through fp16": _through(torch.float16),
    "through bf16": _through(torch.bfloat16),
    "row zeroed": _row_zeroed,
    "column zeroed": _column_zeroed,
    "another alpha": _other_alpha,
    "sign flipped": _scaled(-1.0),
    "another module's update": _of_another_module,
    "another adapter": lambda bench, name: {name: bench.other[name]},
    "last bits cut off": _truncated,
    "one element off": _one_element,
    "one element off by some units in the last place": _one_element_slightly,
    "untouched weight changed": _untouched_changed,
}
