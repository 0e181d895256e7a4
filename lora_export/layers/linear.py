"""LoRA on linear layers, stored (out, in), or (in, out) when fan_in_fan_out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices:
        return []
    (rank, features_in), (features_out, rank_b) = shapes.a, shapes.b
    if rank != rank_b:
        return []
    found = []
    if shapes.weight == (features_out, features_in):
        found.append(Reading("linear", rank))
    if shapes.weight == (features_in, features_out):
        found.append(Reading("linear", rank, fan_in_fan_out=True))
    return found


def _product(
    delta: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces `T(lora_B @ lora_A)` of loralib 0.1.2, layers.Linear.train. PEFT 0.21.2,
    tuners.lora.layer.Linear.get_delta_weight, computes the same product.
    """
    if delta.fan_in_fan_out:
        return (factors["B"] @ factors["A"][:, first:stop]).transpose(0, 1)
    return factors["B"][first:stop] @ factors["A"]


KIND = LayerKind(
    "linear",
    ("A", "B"),
    _readings,
    weight_matrix,
    _product,
    "A (r, in), B (out, r) for a weight (out, in)",
    tuners=frozenset({"loralib", "litgpt", "lora"}),
)
