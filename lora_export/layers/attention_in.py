"""The input projection of torch's MultiheadAttention: q, k and v in one adapted parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices or len(shapes.weight) != 2:
        return []
    (rank, features), (features_out, rank_b) = shapes.a, shapes.b
    fits = rank == rank_b and shapes.weight == (features_out, features) == (3 * features, features)
    return [Reading("attention_in", rank)] if fits else []


def _product(_: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces PEFT 0.21.2, tuners.lora.layer.MultiheadAttention.get_delta_weight.
    """
    return factors["B"][first:stop] @ factors["A"]


KIND = LayerKind(
    "attention_in",
    ("A", "B"),
    _readings,
    weight_matrix,
    _product,
    "A (r, width), B (3*width, r) for the in_proj_weight (3*width, width)",
    tuners=frozenset({"lora_attention_in"}),
    twice=frozenset({"peft", "peft-safe"}),
)
