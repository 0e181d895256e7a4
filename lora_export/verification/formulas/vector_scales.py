"""Formulas of both kinds of (IA)^3, whose learned vector multiplies the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.formulas.scaling import scaling_of

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def multiplied(
    scales: torch.Tensor, scaling: float, base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (l - 1) W and the magnitude of its errors, both in the base's shape.

    The library computes l W, rounded to one unit of |l W|, and not the difference itself. The
    magnitude is therefore |l W| + |W|.

    scales: l, in a shape that broadcasts over the base.
    """
    size = (base * scales).abs() + base.abs()
    return base * (scales - 1.0) * scaling, size * abs(scaling)


def strength(factors: Factors, delta: Delta) -> torch.Tensor:
    """Return the vector by which the unmerged layer multiplies.

    It is l, or 1 + w (l - 1) with a user's weight w other than 1.
    """
    weight = scaling_of(delta)
    scales = factors["L"].reshape(-1)
    return scales if weight == 1.0 else 1.0 + (scales - 1.0) * weight
