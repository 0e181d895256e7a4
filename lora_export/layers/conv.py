"""Convolutions of loralib, whose update is a plain reshape of B @ A; groups are allowed."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

CONV2D_DIMS = 4


def _readings(shapes: Shapes) -> list[Reading]:
    if not 3 <= len(shapes.weight) <= 5:  # noqa: PLR2004 - Conv1d, Conv2d, Conv3d
        return []
    out, in_per_group, *kernel = shapes.weight
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


def _product(delta: Delta, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`(lora_B @ lora_A).view(weight.shape)` of loralib 0.1.2, layers.ConvLoRA.train."""
    return (factors["B"] @ factors["A"]).view(delta.shape)


KIND = LayerKind(
    "conv",
    ("A", "B"),
    _readings,
    _product,
    "A (r*k, in*k), B (out//groups*k, r*k) for a weight (out, in//groups, k, k); "
    "in one and three dimensions loralib itself only works with k = 1",
)
