"""DoRA on linear layers: the weights of each output are scaled to a learned length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.dora import length_factor
from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices:
        return []
    (rank, features_in), (features_out, rank_b) = shapes.a, shapes.b
    if rank != rank_b or shapes.factors["M"] != (features_out,):
        return []
    found = []
    if shapes.weight == (features_out, features_in):
        found.append(Reading("dora_linear", rank))
    if shapes.weight == (features_in, features_out):
        found.append(Reading("dora_linear", rank, fan_in_fan_out=True))
    return found


def _change(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the merged weight.

    Reproduces PEFT 0.21.2, tuners.lora.variants.DoraLinearVariant.merge_unsafe. Of a weight that
    is stored (in, out) the lengths are those of columns: `base` then holds all rows.
    """
    import torch

    a, b, magnitude = factors["A"], factors["B"], factors["M"]
    if delta.fan_in_fan_out:
        moved = base + (b @ a).transpose(0, 1) * delta.scaling
        length = torch.linalg.norm(moved.transpose(0, 1), dim=1)
        return length_factor(delta, magnitude, length, by_column=True).view(1, -1) * moved
    moved = base + (b[first:stop] @ a) * delta.scaling
    length = torch.linalg.norm(moved, dim=1)
    return length_factor(delta, magnitude[first:stop], length, first).view(-1, 1) * moved


def _cuttable(delta: Delta) -> bool:
    return not delta.fan_in_fan_out


KIND = LayerKind(
    "dora_linear",
    ("A", "B", "M"),
    _readings,
    weight_matrix,
    None,
    "A (r, in), B (out, r), magnitude (out) for a weight (out, in)",
    _cuttable,
    frozenset({"dora"}),
    _change,
    frozenset(),
)
