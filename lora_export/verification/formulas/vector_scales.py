"""What both kinds of (IA)^3 have in common: a learned vector that multiplies the weight."""

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
    """Return (l - 1) W and the magnitude of its errors; `scales` broadcasts over the base.

    Neither the product nor the difference is off by more than a unit of |l W|, or of |W|.
    """
    size = (base * scales).abs() + base.abs()
    return base * (scales - 1.0) * scaling, size * abs(scaling)


def strength(factors: Factors, delta: Delta) -> torch.Tensor:
    """Return the vector l, or with a user's weight w, what W + w * (l W - W) multiplies by."""
    weight = scaling_of(delta)
    scales = factors["L"].reshape(-1)
    return scales if weight == 1.0 else 1.0 + (scales - 1.0) * weight
