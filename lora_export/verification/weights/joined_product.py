"""Joins all updates of a tensor into one product, which is added without an array of its own.

The screen of half-precision weights recomputes every element. One product instead of several, and
no array for the update, save most of its time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


@dataclass(frozen=True, slots=True)
class JoinedProduct:
    """An update (left * scales) @ right that is added without an array of its own."""

    left: torch.Tensor
    """(rows, ranks), in the dtype of the factors."""
    scales: torch.Tensor
    """One for each column of `left`, in float64."""
    right: torch.Tensor
    """(ranks, columns), in float32."""
    gram: torch.Tensor
    """right @ right.T in float64; ||L @ right||^2 is the sum of (L.T @ L) * gram."""

    def add_to(self, exact: torch.Tensor, first: int) -> float:
        """Add rows of the update to `exact` in place, in float32.

        Args:
            exact: float32 rows of the base.
            first: the number of the first row.

        Returns:
            the sum of the squares of these rows of the update.
        """
        left = self.left[first : first + len(exact)].double() * self.scales
        exact.addmm_(left.float(), self.right)
        # Rounding may bring the sum of a tiny update below zero.
        return max(0.0, float(((left.T @ left) * self.gram).sum()))

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of the update with these numbers, in float64."""
        left = self.left[rows].double() * self.scales
        return left @ self.right.double()


def join_products(
    deltas: Sequence[Delta], factors: Sequence[Factors], scales: Sequence[float]
) -> JoinedProduct | None:
    """Join updates into one product; return None if one of them is no single product.

    The left matrices stand beside each other, the right ones below each other.

    Args:
        deltas: the updates of one tensor.
        factors: those of each update.
        scales: the scaling of each update, times the user's weight.
    """
    import torch

    makers = [proof_of(delta).sides for delta in deltas]
    sides = [
        make(delta, own)
        for make, delta, own in zip(makers, deltas, factors, strict=True)
        if make is not None
    ]
    if len(sides) < len(makers):
        return None
    lefts, rights = ([pair[place] for pair in sides] for place in (0, 1))
    per_column = [
        torch.full((len(right),), scale, dtype=torch.float64)
        for right, scale in zip(rights, scales, strict=True)
    ]
    right = torch.cat(rights).double()
    left = lefts[0] if len(lefts) == 1 else torch.cat(lefts, dim=1)
    return JoinedProduct(left, torch.cat(per_column), right.float(), right @ right.T)
