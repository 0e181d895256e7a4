"""Recomputes DoRA from its definition: the weight plus its update, brought to the learned length.

V = W + s B A has the length |V| along a row (or column) of n elements. With the magnitude m, the
result is (m / |V|) V. Errors in units u of the dtype of the sum, to first order:

- V has the update's error e, and u |V| for the addition.
- The length has a relative error of |e| / |V| + u, and that of the sum of n squares. The latter is
  at most n u / 2. Rounding errors are nearly independent, so 8 sqrt(n) u / 2 bounds it as well
  (Higham and Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput.
  41, 2019, with lambda = 8).
- Division and product have u each, and so has the difference to W in a sum of several adapters.

An error of the length multiplies a whole row by one factor. A wrong scaling moves V at right angles
to itself. The scaling is proven along that direction, so the length's error does not disturb it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.verification.formulas.unit_roundoff import units_of_share

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors, Formula

_FEW = 8
"""Roundings beside those of the update and of the summation."""


@dataclass(frozen=True, slots=True)
class _Moved:
    """The values that both formulas need, for some rows of the weight, in float64."""

    update: torch.Tensor
    """The scaled update."""
    size: torch.Tensor
    """The magnitude of the update: the same sum over absolute values."""
    weight: torch.Tensor
    """V: the base plus the update."""
    length: torch.Tensor
    """|V|, of size 1 along the axis of the lengths."""
    factor: torch.Tensor
    """m / |V|, of the shape of `length`."""


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
        """Compute V and its length.

        scaling: without the adapter's weight, which is a factor of the whole change.
        """
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
        """Compute the change of the base's rows, and the magnitude of its error; both in float64.

        The arguments are those of signatures.ChangeFormula.
        """
        axis = self._axis(delta)
        moved = self._moved(delta, factors, scaling / delta.weight, base, rows)
        count = moved.weight.shape[axis]
        summed = min(count, 8.0 * count**0.5) / 2 + _FEW  # see the module's docstring
        spread = moved.size.square().sum(dim=axis, keepdim=True).sqrt() / moved.length
        relative = spread + summed / units_of_share(delta)
        size = moved.factor.abs() * (moved.size + moved.weight.abs() * relative)
        size = size + base.abs() * (2 / units_of_share(delta))
        return (moved.factor * moved.weight - base) * delta.weight, size * abs(delta.weight)

    def tangent(
        self,
        delta: Delta,
        factors: Factors,
        scaling: float,
        base: torch.Tensor,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the derivative of the result by the scaling, times the scaling.

        The second tensor is the magnitude of the errors in that direction. The arguments are those
        of signatures.ChangeFormula.
        """
        moved = self._moved(delta, factors, scaling / delta.weight, base, rows)
        along = (moved.weight * moved.update).sum(dim=self._axis(delta), keepdim=True)
        across = moved.update - moved.weight * (along / moved.length.square())
        few = moved.weight.abs() * moved.factor.abs() + base.abs()
        few = few * (_FEW / units_of_share(delta))
        size = moved.factor.abs() * moved.size + few
        return moved.factor * across * delta.weight, size * abs(delta.weight)
