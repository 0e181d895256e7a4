"""DoRA recomputed from its definition: weight plus update, brought to the learned length.

V = W + s B A has the length |V| along a row (or column) of n elements. With the magnitude m, the
result is (m / |V|) V. Errors in units u of the dtype of the sum, to first order:

- V: that of the update, e, and u |V| for the add;
- its length, relatively: |e| / |V| + u, and the summation of n squares. At most n u / 2; rounding
  errors do not conspire, so 8 sqrt(n) u / 2 (Higham and Mary, A new approach to probabilistic
  rounding error analysis, SIAM J. Sci. Comput. 41, 2019, with lambda = 8);
- division, product, and for sums of several adapters the difference to W: u each.

The length's part is one factor for a whole row, so it cannot be mistaken for a wrong scaling: that
moves V at right angles to itself, and it is along this direction that the scaling is proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors, Formula

_FEW = 8
"""Roundings beside those of the update and of the summation."""


def shares(delta: Delta) -> int:
    """How many u a share of verification.weights.rounding.update_error is at least."""
    return 2 * delta.rank + 7


@dataclass(frozen=True, slots=True)
class _Moved:
    """What both formulas need: the scaled update, its magnitude, V, the lengths of V, m / |V|."""

    update: torch.Tensor
    size: torch.Tensor
    weight: torch.Tensor
    length: torch.Tensor
    factor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Dora:
    """The formulas of one kind of DoRA."""

    additive: Formula
    """The formula of its update before DoRA."""
    by_column: bool = False
    """Whether the lengths are those of columns, however the weight is stored."""

    def _axis(self, delta: Delta) -> int:
        return 0 if self.by_column or delta.fan_in_fan_out else 1

    def _moved(
        self,
        delta: Delta,
        factors: Factors,
        scaling: float,
        base: torch.Tensor,
        rows: torch.Tensor,
    ) -> _Moved:
        """`scaling` without the adapter's weight, which is a factor of the whole change."""
        update = self.additive(delta, factors, rows) * scaling
        sizes = {role: factor.abs() for role, factor in factors.items()}
        weight = base + update
        axis = self._axis(delta)
        length = weight.square().sum(dim=axis, keepdim=True).sqrt()
        magnitude = factors["M"].flatten()
        magnitude = magnitude[None, :] if axis == 0 else magnitude[rows][:, None]
        size = self.additive(delta, sizes, rows) * abs(scaling)
        return _Moved(update, size, weight, length, magnitude / length)

    def change(
        self,
        delta: Delta,
        factors: Factors,
        scaling: float,
        base: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to the base, and the magnitude of its error."""
        axis = self._axis(delta)
        moved = self._moved(delta, factors, scaling / delta.weight, base, rows)
        count = moved.weight.shape[axis]
        summed = min(count, 8.0 * count**0.5) / 2 + _FEW
        spread = moved.size.square().sum(dim=axis, keepdim=True).sqrt() / moved.length
        relative = spread + summed / shares(delta)
        size = moved.factor.abs() * (moved.size + moved.weight.abs() * relative)
        size = size + base.abs() * (2 / shares(delta))
        return (moved.factor * moved.weight - base) * delta.weight, size * abs(delta.weight)

    def tangent(
        self,
        delta: Delta,
        factors: Factors,
        scaling: float,
        base: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the result moves by when the scaling grows, and the magnitude of errors along it."""
        moved = self._moved(delta, factors, scaling / delta.weight, base, rows)
        along = (moved.weight * moved.update).sum(dim=self._axis(delta), keepdim=True)
        across = moved.update - moved.weight * (along / moved.length.square())
        few = (moved.weight.abs() * moved.factor.abs() + base.abs()) * (_FEW / shares(delta))
        size = moved.factor.abs() * moved.size + few
        return moved.factor * across * delta.weight, size * abs(delta.weight)
