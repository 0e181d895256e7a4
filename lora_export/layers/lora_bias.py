"""The bias that PEFT's lora_bias puts on B, added to the layer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, unturned, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    fits = len(shapes.weight) == 1 and shapes.factors["bias"] == shapes.weight
    return [Reading("lora_bias", 0)] if fits else []


def _product(_: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int) -> torch.Tensor:
    """Return rows of the update, unscaled: the bias as one column.

    Reproduces `lora_B.bias` of PEFT 0.21.2, tuners.lora.layer.Linear.merge. It is a copy, as the
    scaling is multiplied in place.
    """
    return factors["bias"][first:stop].clone().unsqueeze(1)


KIND = LayerKind(
    "lora_bias",
    ("bias",),
    _readings,
    weight_matrix,
    _product,
    "the bias of B (out) for a layer's bias (out)",
    tuners=frozenset({"lora_bias"}),
    twice=frozenset(),
    is_oriented=unturned,
)
