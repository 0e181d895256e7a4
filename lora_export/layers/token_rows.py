"""Trained rows that replace rows of a table (num, dim), or of a head over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, unturned, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    rows = shapes.factors["rows"]
    matrices = len(rows) == len(shapes.weight) == 2
    fits = matrices and rows[1] == shapes.weight[1] and rows[0] <= shapes.weight[0]
    return [Reading("token_rows", rows[0])] if fits else []


def _change(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """Replace those of the rows `first` to `stop - 1` that were trained.

    Reproduces `weight.index_copy(0, indices, rows.to(weight))` of PEFT 0.21.2,
    tuners.trainable_tokens.layer.TrainableTokensLayer.merge.
    """
    import torch

    places = [p for p, index in enumerate(delta.indices) if first <= index < stop]
    if not places:
        return base
    inside = torch.tensor([delta.indices[place] - first for place in places])
    return base.index_copy(0, inside, factors["rows"][places].to(base))


KIND = LayerKind(
    "token_rows",
    ("rows",),
    _readings,
    weight_matrix,
    None,
    "rows (tokens, dim) for a table (num, dim)",
    tuners=frozenset({"trainable_tokens"}),
    change=_change,
    twice=frozenset(),
    is_oriented=unturned,
)
