"""(IA)^3 on a layer's outputs: its weight's rows and its bias are multiplied."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    """List the readings of shapes: L is (out, 1), of a convolution (1, out, 1...).

    The L of a bias has the shape of its layer's, either of the two.
    """
    scales, weight = shapes.factors["L"], shapes.weight
    if len(weight) == 1:
        return [Reading("ia3", 0)] if prod(scales) == weight[0] == max(scales) else []
    if len(weight) > 2:
        fits = scales == (1, weight[0], *(1 for _ in weight[2:]))
        return [Reading("ia3", 0)] if fits else []
    found = []
    if len(weight) == 2 and scales == (weight[0], 1):
        found.append(Reading("ia3", 0))
    if len(weight) == 2 and scales == (weight[1], 1):
        found.append(Reading("ia3", 0, fan_in_fan_out=True))
    return found


def _change(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the merged weight, or of the bias as one column.

    Reproduces `torch.mul(weight, ia3_l)` of PEFT 0.21.2, tuners.ia3.layer, merge.
    """
    import torch

    scales = factors["L"].reshape(-1)
    if delta.fan_in_fan_out:
        return torch.mul(base, scales)
    return torch.mul(base, scales[first:stop, None])


KIND = LayerKind(
    "ia3",
    ("L",),
    _readings,
    weight_matrix,
    None,
    "l (out, 1) for a weight (out, in), (1, out, 1...) for a convolution (out, in, k...)",
    tuners=frozenset({"ia3"}),
    change=_change,
    twice=frozenset(),
    multiplies=True,
)
