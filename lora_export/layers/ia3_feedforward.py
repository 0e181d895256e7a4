"""(IA)^3 on a layer's inputs, as for feed-forward modules: the weight's columns are multiplied."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    """List the readings of shapes: L is (1, in), of a convolution (1, in, 1...).

    `in` counts the inputs of all groups.
    """
    scales, weight = shapes.factors["L"], shapes.weight
    if len(scales) != len(weight) or len(weight) < 2 or prod(scales) != scales[1]:
        return []
    kind = "ia3_feedforward"
    if len(weight) > 2:
        groups, rest = divmod(scales[1], weight[1])
        fits = groups > 0 and not rest and weight[0] % groups == 0
        return [Reading(kind, 0)] if fits else []
    found = [Reading(kind, 0)] if scales[1] == weight[1] else []
    return found + ([Reading(kind, 0, fan_in_fan_out=True)] if scales[1] == weight[0] else [])


def _change(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the merged weight.

    Reproduces `torch.mul(weight, ia3_l)` of PEFT 0.21.2, tuners.ia3.layer, merge. A row of a
    grouped convolution takes the scales of its own group's inputs.
    """
    import torch

    scales = factors["L"].reshape(-1)
    if delta.fan_in_fan_out:
        return torch.mul(base, scales[first:stop, None])
    if len(delta.shape) == 2:
        return torch.mul(base, scales)
    out, width, *kernel = delta.shape
    by_group = scales.reshape(-1, width).repeat_interleave(prod(kernel), dim=1)
    rows = torch.arange(first, stop) // (out // len(by_group))
    return torch.mul(base, by_group[rows])


KIND = LayerKind(
    "ia3_feedforward",
    ("L",),
    _readings,
    weight_matrix,
    None,
    "l (1, in) for a weight (out, in), (1, in, 1...) for a convolution (out, in//groups, k...)",
    tuners=frozenset({"ia3_feedforward"}),
    change=_change,
    twice=frozenset(),
    multiplies=True,
)
