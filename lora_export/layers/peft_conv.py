"""Convolutions as PEFT adapts them: A has the kernel's sizes, B is 1 x 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix
from lora_export.layers.threads import library_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

_DIMENSIONS = (3, 4, 5)  # of the weight of Conv1d, Conv2d, Conv3d
_CONV2D = 4


def conv_rank(shapes: Shapes) -> int | None:
    """Return the rank, where A and B explain the weight of a convolution; else None."""
    if len(shapes.weight) not in _DIMENSIONS or len(shapes.b) != len(shapes.weight):
        return None
    out, *rest = shapes.weight
    rank = shapes.b[1]
    ones = (1,) * (len(rest) - 1)
    fits = shapes.a == (rank, *rest) and shapes.b == (out, rank, *ones)
    return rank if fits else None


def is_pointwise(delta: Delta) -> bool:
    """Return whether the layer is a 1 x 1 Conv2d, which PEFT merges by a product of matrices."""
    return len(delta.shape) == _CONV2D and delta.shape[2:] == (1, 1)


def conv_product(
    delta: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the update (out, in * kernel), unscaled.

    Reproduces PEFT 0.21.2, tuners.lora.layer._ConvNd.get_delta_weight. PEFT's test for 1 x 1 takes
    a Conv3d with a kernel (1, 1, k) for a Conv2d and fails on it. Here such a layer is merged by
    the convolution that its forward computes.
    """
    import torch.nn.functional as F

    a, b = factors["A"], factors["B"]
    if is_pointwise(delta):
        return b.squeeze(3).squeeze(2)[first:stop] @ a.squeeze(3).squeeze(2)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(delta.shape) - 3]
    with library_threads():  # the last bits depend on how many there are
        whole = convolve(a.transpose(0, 1), b).transpose(0, 1)
    return whole.reshape(weight_matrix(delta))[first:stop]


def _readings(shapes: Shapes) -> list[Reading]:
    rank = conv_rank(shapes)
    return [] if rank is None else [Reading("peft_conv", rank)]


KIND = LayerKind(
    "peft_conv",
    ("A", "B"),
    _readings,
    weight_matrix,
    conv_product,
    "A (r, in, k, ...), B (out, r, 1, ...) for a convolution's weight (out, in, k, ...); one in "
    "groups has no weight for what A mixes across them, and PEFT does not merge it either",
    is_pointwise,
    frozenset({"lora"}),
)
