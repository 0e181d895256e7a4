"""Recomputes the scaling of an update from alpha and rank, without the plan's own number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_export.records import Delta


def scaling_of(delta: Delta) -> float:
    """Compute the scaling by the library's rule from alpha and rank, times the user's weight.

    It is computed in float64. Rule "alpha / rank in float32" rounds the quotient to float32.
    """
    match delta.rule:
        case "alpha / rank":
            return delta.alpha / delta.rank * delta.weight
        case "alpha / rank in float32":
            return _single(delta.alpha / delta.rank) * delta.weight
        case "alpha / sqrt(rank)":
            return delta.alpha / math.sqrt(delta.rank) * delta.weight
        case "alpha / (rank + 1e-5)":
            return delta.alpha / (delta.rank + 1e-5) * delta.weight
        case "1":
            return delta.weight


def _single(value: float) -> float:
    import torch

    return float(torch.tensor(value, dtype=torch.float32))
