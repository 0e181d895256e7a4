"""Linear layers, stored (out, in), or (in, out) when fan_in_fan_out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    (rank, features_in), (features_out, rank_b) = shapes.a, shapes.b
    if rank != rank_b:
        return []
    found = []
    if shapes.weight == (features_out, features_in):
        found.append(Reading("linear", rank))
    if shapes.weight == (features_in, features_out):
        found.append(Reading("linear", rank, fan_in_fan_out=True))
    return found


def _product(delta: Delta, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`T(lora_B @ lora_A)` of loralib 0.1.2, layers.Linear.train."""
    product = factors["B"] @ factors["A"]
    return product.transpose(0, 1) if delta.fan_in_fan_out else product


KIND = LayerKind(
    "linear", ("A", "B"), _readings, _product, "A (r, in), B (out, r) for a weight (out, in)"
)
