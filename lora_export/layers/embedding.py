"""LoRA on embedding tables, stored (num, dim)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, unturned, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices:
        return []
    (rank, num), (dim, rank_b) = shapes.a, shapes.b
    return [Reading("embedding", rank)] if rank == rank_b and shapes.weight == (num, dim) else []


def _product(_: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces `(lora_B @ lora_A).transpose(0, 1)` of loralib 0.1.2, layers.Embedding.train. PEFT
    0.21.2, tuners.lora.layer.Embedding.get_delta_weight, computes the same product.
    """
    return (factors["B"] @ factors["A"][:, first:stop]).transpose(0, 1)


KIND = LayerKind(
    "embedding",
    ("A", "B"),
    _readings,
    weight_matrix,
    _product,
    "A (r, num), B (dim, r) for a table (num, dim)",
    tuners=frozenset({"loralib", "lora_embedding"}),
    twice=frozenset({"peft", "peft-safe"}),
    is_oriented=unturned,
    looks_up=True,
    zero_at_start="A",
)
