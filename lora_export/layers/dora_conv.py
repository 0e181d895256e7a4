"""DoRA on convolutions: each output channel's kernel is scaled to a learned length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.dora import length_factor
from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix
from lora_export.layers.peft_conv import conv_product, conv_rank, is_pointwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    rank = conv_rank(shapes)
    if rank is None:
        return []
    out, _, *kernel = shapes.weight
    fits = shapes.factors["M"] == (1, out, *(1 for _ in kernel))
    return [Reading("dora_conv", rank)] if fits else []


def _change(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the merged weight.

    Reproduces PEFT 0.21.2, tuners.lora.variants._DoraConvNdVariant.merge_unsafe.
    """
    moved = base + conv_product(delta, factors, first, stop) * delta.scaling
    kernels = moved.reshape(stop - first, *delta.shape[1:])
    length = kernels.norm(p=2, dim=tuple(range(1, kernels.dim())), keepdim=True)
    magnitude = factors["M"].transpose(1, 0)[first:stop]
    return length_factor(delta, magnitude, length, first).view(-1, 1) * moved


KIND = LayerKind(
    "dora_conv",
    ("A", "B", "M"),
    _readings,
    weight_matrix,
    None,
    "A (r, in, k, ...), B (out, r, 1, ...), magnitude (1, out, 1, ...) for a weight "
    "(out, in, k, ...) without groups",
    is_pointwise,
    frozenset({"dora"}),
    _change,
    frozenset(),
)
