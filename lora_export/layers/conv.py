"""Convolutions of loralib, whose update is a plain reshape of B @ A; groups are allowed."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices or not 3 <= len(shapes.weight) <= 5:
        return []
    out, in_per_group, *kernel = shapes.weight
    # loralib takes one kernel size for all dimensions, and folds it into the factors' sizes.
    k = kernel[-1]
    (rank_k, in_k), (out_k, rank_k_b) = shapes.a, shapes.b
    square = all(size == k for size in kernel)
    divides = rank_k % k == 0 and in_k % k == 0 and out_k % k == 0
    if not square or not divides or rank_k != rank_k_b:
        return []
    groups, rest = divmod(in_k // k, in_per_group)
    fits = rest == 0 and groups > 0 and out_k // k * groups == out
    if fits and in_k * out_k == prod(shapes.weight):
        return [Reading("conv", rank_k // k)]
    return []


def _matrix(delta: Delta) -> tuple[int, int]:
    return delta.factors["B"].spec.shape[0], delta.factors["A"].spec.shape[1]


def _product(_: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int) -> torch.Tensor:
    """Compute rows of the update, unscaled, before it is reshaped to the kernel.

    Reproduces `lora_B @ lora_A` of loralib 0.1.2, layers.ConvLoRA.train.
    """
    return factors["B"][first:stop] @ factors["A"]


KIND = LayerKind(
    "conv",
    ("A", "B"),
    _readings,
    _matrix,
    _product,
    "A (r*k, in*k), B (out//groups*k, r*k) for a weight (out, in//groups, k, k); "
    "in one and three dimensions loralib itself only works with k = 1",
)
