"""DoRA on embedding tables, stored (num, dim): each column is scaled to a learned length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.dora import length_factor
from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, unturned, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices:
        return []
    (rank, num), (dim, rank_b) = shapes.a, shapes.b
    fits = rank == rank_b and shapes.weight == (num, dim) and shapes.factors["M"] == (dim,)
    return [Reading("dora_embedding", rank)] if fits else []


def _change(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, _: int, __: int
) -> torch.Tensor:
    """Compute the merged table, all rows at once.

    Reproduces PEFT 0.21.2, tuners.lora.variants.DoraEmbeddingVariant.merge_unsafe.
    """
    import torch

    moved = base + (factors["B"] @ factors["A"]).transpose(0, 1) * delta.scaling
    length = torch.linalg.norm(moved.transpose(0, 1), dim=1)
    return length_factor(delta, factors["M"], length, by_column=True).view(1, -1) * moved


def _never(_: Delta) -> bool:
    """Return False: the length of a column takes all rows."""
    return False


KIND = LayerKind(
    "dora_embedding",
    ("A", "B", "M"),
    _readings,
    weight_matrix,
    None,
    "A (r, num), B (dim, r), magnitude (dim) for a table (num, dim)",
    _never,
    frozenset({"dora_embedding"}),
    _change,
    frozenset(),
    is_oriented=unturned,
    looks_up=True,
    zero_at_start="A",
)
