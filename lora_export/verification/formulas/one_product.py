"""Formulas and live branches of updates that are one product of two matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import embed_scale

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors, Formula, Sides


def stored_sides(_: Delta, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B and A.

    A convolution's matrix, (out//groups*k, in*k), has the kernel's elements in their order.
    """
    return factors["B"], factors["A"]


def turned_sides(_: Delta, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B transposed, of a weight that is stored (in, out) or (num, dim)."""
    return factors["A"].T, factors["B"].T


def oriented_sides(delta: Delta, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sides as the weight is stored."""
    turned = delta.fan_in_fan_out
    return turned_sides(delta, factors) if turned else stored_sides(delta, factors)


def product_of(sides: Sides) -> Formula:
    """Return the formula of an update that is the product of its sides."""

    def formula(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
        left, right = sides(delta, factors)
        return left[rows] @ right

    return formula


def columns_of_a(_: Delta, factors: Factors, rows: torch.Tensor) -> Factors:
    """Cut A to the columns that rows of a turned weight need."""
    return {"A": factors["A"][:, rows], "B": factors["B"]}


def live_product(module: Any, x: Any, factors: Factors, _: Delta) -> torch.Tensor:
    """Run the low-rank layer: a Linear on floats, an Embedding on ids.

    The input's dtype decides, not the kind. An adapted Embedding and a Linear stored (in, out) have
    factors of the same shapes. A file does not always show which of both a module is.

    Args:
        module: the adapted module.
        x: its input: floats (..., in), or int64 ids.
        factors: A (rank, in) and B (out, rank), in the output's dtype.

    Returns:
        the unscaled part of the output: (..., out).
    """
    import torch.nn.functional as F

    if x.is_floating_point():
        result: torch.Tensor = (x @ factors["A"].T) @ factors["B"].T
        return result
    looked_up: torch.Tensor = F.embedding(x, factors["A"].T) @ factors["B"].T
    scaled: torch.Tensor = looked_up * embed_scale(module)
    return scaled
