"""The output projection of torch's MultiheadAttention, whose update counts twice in PEFT."""

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
    (rank, features), (features_out, rank_b) = shapes.a, shapes.b
    fits = rank == rank_b and shapes.weight == (features_out, features)
    return [Reading("attention_out", rank)] if fits else []


def _change(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the merged out_proj.

    Reproduces PEFT 0.21.2, tuners.lora.layer.MultiheadAttention.merge. It adds the update, rounded
    to the weight's dtype. Then it calls the merge of the adapted out_proj, which adds the update
    again. PEFT's forward merges first: adapters are trained with the update counted twice.
    safe_merge changes nothing, as the second call does not pass it on.
    """
    update = (factors["B"][first:stop] @ factors["A"]) * delta.scaling
    return (base + update.to(base.dtype)) + update


KIND = LayerKind(
    "attention_out",
    ("A", "B"),
    _readings,
    weight_matrix,
    None,
    "A (r, width), B (width, r) for the out_proj.weight (width, width)",
    tuners=frozenset({"lora_attention_out"}),
    change=_change,
    twice=frozenset(),
)
