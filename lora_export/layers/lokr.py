"""LoKr: the Kronecker product of a small matrix and a larger one, on nn.Linear and convolutions."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

    Sizes = tuple[int, ...]

_MATRIX, _CORE = 2, 4
_WHOLE_1D = 3
"""Dimensions of an undecomposed w2 of a Conv1d. torch.kron aligns the last sizes, and w1 has two:
rows and columns of w1 then fall on other sizes than in the matrix case."""


def _readings(shapes: Shapes) -> list[Reading]:
    left, right = _left(shapes.factors), _right(shapes.factors)
    if left is None or right is None or len(shapes.weight) < _MATRIX:
        return []
    (rank_left, w1), (rank_right, w2) = left, right
    ranks = {rank_left, rank_right} - {0}
    whole = shapes.weight[1:]
    rows = shapes.weight[:1] == (w1[0] * w2[0],)
    columns = w1[1] * prod(w2[1:]) == prod(whole)
    kernel = len(w2) == _MATRIX or w2[2:] in (whole[1:], (*whole[1:], 1))
    if len(ranks) > 1 or not rows or not columns or not kernel:
        return []
    return [Reading("lokr", next(iter(ranks), 0))]


def _left(factors: Mapping[str, Sizes]) -> tuple[int, Sizes] | None:
    """Return (rank, sizes) of w1; rank 0 where it is not decomposed, None where it does not fit."""
    return _pair(factors, "w1", _MATRIX)


def _right(factors: Mapping[str, Sizes]) -> tuple[int, Sizes] | None:
    """Return (rank, sizes) of w2, as `_left` does; the sizes may end with those of a kernel."""
    core = factors.get("t2")
    if core is None:
        return _pair(factors, "w2", _CORE)
    a, b = factors.get("w2_a", ()), factors.get("w2_b", ())
    if "w2" in factors or len(core) != _CORE or not len(a) == len(b) == _MATRIX:
        return None
    if not core[0] == core[1] == a[0] == b[0]:
        return None
    return a[0], (a[1], b[1], *core[2:])


def _pair(factors: Mapping[str, Sizes], name: str, most: int) -> tuple[int, Sizes] | None:
    """Return (rank, sizes) of a matrix: stored whole, or as a product of two; None for both.

    most: the dimensions that a matrix stored whole may have.
    """
    whole, a, b = (factors.get(f"{name}{end}") for end in ("", "_a", "_b"))
    if whole is not None:
        return (0, whole) if a is b is None and _MATRIX <= len(whole) <= most else None
    if a is None or b is None or not len(a) == len(b) == _MATRIX or a[1] != b[0]:
        return None
    return a[1], (a[0], b[1])


def _prepare(delta: Delta, factors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Compute w1 and w2 of the Kronecker product; of a Conv1d's whole w2 the whole update.

    Reproduces PEFT 0.21.2, tuners.lokr.layer, LoKrLayer.get_delta_weight.
    """
    import torch

    w1 = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    if "w2" in factors:
        w2 = factors["w2"]
    elif "t2" in factors:
        term = "i j k l, i p, j r -> p r k l"
        w2 = torch.einsum(term, factors["t2"], factors["w2_a"], factors["w2_b"])
    else:
        w2 = factors["w2_a"] @ factors["w2_b"]
    if w2.dim() == _WHOLE_1D:
        return {"whole": torch.kron(w1, w2).reshape(weight_matrix(delta))}
    return {"w1": w1, "w2": w2.reshape(len(w2), -1)}


def _product(_: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces torch.kron in make_kron of PEFT 0.21.2, tuners.lokr.layer. An element is one product
    of two numbers: its bits do not depend on how the rows are cut.
    """
    import torch

    if "whole" in factors:
        return factors["whole"][first:stop].clone()
    w1, w2 = factors["w1"], factors["w2"]
    rows = torch.arange(first, stop)
    left, right = w1[rows // len(w2)], w2[rows % len(w2)]
    return (left[:, :, None] * right[:, None, :]).reshape(len(rows), -1)


KIND = LayerKind(
    "lokr",
    (),
    _readings,
    weight_matrix,
    _product,
    "w1 (a, c) or w1_a @ w1_b, w2 (b, d, k...) or w2_a @ w2_b or t2 with both, for a weight "
    "(a*b, c*d, k...)",
    tuners=frozenset({"lokr"}),
    twice=frozenset(),
    optional=frozenset({"w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"}),
    prepare=_prepare,
)
