"""LoHa: the elementwise product of two low-rank products, on nn.Linear and convolutions."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, as_matrix, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

_CORE = 4
"""Dimensions of a core, (r, r, kernel), of a Conv2d and of a Conv1d."""


def _readings(shapes: Shapes) -> list[Reading]:
    halves = [_half(shapes, half) for half in ("w1", "w2")]
    if halves[0] is None or halves[0] != halves[1] or len(shapes.weight) < 2:
        return []
    rank, *sizes = halves[0]
    fits = tuple(sizes) == as_matrix(shapes.weight)
    return [Reading("loha", rank)] if fits else []


def _half(shapes: Shapes, half: str) -> tuple[int, int, int] | None:
    """Return (rank, rows, columns) of one of the two products; None where its shapes do not fit."""
    a, b = shapes.factors[f"{half}_a"], shapes.factors[f"{half}_b"]
    if not len(a) == len(b) == 2:
        return None
    core = shapes.factors.get(f"t{half[1]}")
    if ("t1" in shapes.factors) != ("t2" in shapes.factors):
        return None
    if core is None:
        return (a[1], a[0], b[1]) if a[1] == b[0] else None
    kernel, wanted = core[2:], shapes.weight[2:]
    fits = len(core) == _CORE and core[:2] == (a[0], b[0]) and a[0] == b[0]
    # PEFT gives a Conv1d's core a second kernel size of 1.
    same_kernel = kernel in (wanted, (*wanted, 1))
    return (a[0], a[1], b[1] * prod(kernel)) if fits and same_kernel else None


def _prepare(delta: Delta, factors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Compute the whole update where the factors have cores; else return the factors.

    Reproduces HadaWeightCP.forward of PEFT 0.21.2, tuners.loha.layer. Its einsum is not cut by
    rows.
    """
    import torch

    if "t1" not in factors:
        return factors
    term = "i j k l, j r, i p -> p r k l"
    first = torch.einsum(term, factors["t1"], factors["w1_b"], factors["w1_a"])
    second = torch.einsum(term, factors["t2"], factors["w2_b"], factors["w2_a"])
    return {"whole": (first * second).reshape(weight_matrix(delta))}


def _product(_: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces HadaWeight.forward of PEFT 0.21.2, tuners.loha.layer.
    """
    if "whole" in factors:
        return factors["whole"][first:stop].clone()
    left = factors["w1_a"][first:stop] @ factors["w1_b"]
    return left * (factors["w2_a"][first:stop] @ factors["w2_b"])


KIND = LayerKind(
    "loha",
    ("w1_a", "w1_b", "w2_a", "w2_b"),
    _readings,
    weight_matrix,
    _product,
    "w1_a, w2_a (out, r) and w1_b, w2_b (r, in*k) for a weight (out, in, k...), or (r, out) and "
    "(r, in) with t1, t2 (r, r, k...)",
    tuners=frozenset({"loha"}),
    twice=frozenset(),
    optional=frozenset({"t1", "t2"}),
    prepare=_prepare,
)
