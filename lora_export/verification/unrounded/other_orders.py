"""Whether a stored element is as right as the merge's: another order of summation gives it.

Another processor, library or number of threads adds up in another order. An element that lies in
the middle between two numbers of half precision may then be rounded to the other one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import torch_dtype
from lora_export.execution.arithmetic import is_cuttable, is_exact_sum
from lora_export.layers import all_kinds
from lora_export.records import HALF_DTYPES
from lora_export.verification.formulas.unit_roundoff import UNIT
from lora_export.verification.weights.merged_rows import WIDE_ELEMENTS, Expectation
from lora_export.verification.weights.rounding import product_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lora_export.records import Delta, Step

_TWO_SUMS = frozenset({"attention_out"})
"""Kinds whose library adds the update twice, each time with a rounding."""


class OtherOrders:
    """The range of each element of a merged tensor over all orders of summation in float32."""

    def __init__(self, step: Step, wide: Step, recipe: str) -> None:
        """Take a step and the same step for a float32 weight; no file is read yet."""
        self._step, self._wide, self._recipe = step, wide, recipe
        self._half = torch_dtype(step.out.dtype)
        self._base = torch_dtype(step.merge_dtype)
        self._is_exact = is_exact_sum(step, recipe)
        self._expected: list[Expectation] = []

    def explain(
        self, first: int, source: torch.Tensor, stored: torch.Tensor, merged: torch.Tensor
    ) -> torch.Tensor:
        """Find the elements that differ from the merge's, and that another order gives.

        Args:
            first: the number of the first row.
            source: these rows of the base.
            stored: these rows of the result.
            merged: the same rows, as the merge computes them here.

        Returns:
            A bool matrix of the shape of `stored`.
        """
        import torch

        found = torch.zeros(stored.shape, dtype=torch.bool)
        rows = torch.arange(len(stored))
        if is_cuttable(self._step):
            rows = (stored != merged).any(dim=1).nonzero().flatten()
        size = max(1, WIDE_ELEMENTS // stored.shape[1]) if is_cuttable(self._step) else len(rows)
        for few in (rows[at : at + size] for at in range(0, len(rows), size)):
            base = source[few].to(self._base).double()
            low, high = self._range(base, first + few)
            found[few] = (low <= stored[few]) & (stored[few] <= high)
        return found

    def _range(self, base: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the smallest and the largest result of rows of the base; base: float64."""
        low = high = base
        for delta, expected in self._parts():
            update, error = expected.update_of(base, rows)
            error += (base.abs() + update.abs()) * (4 * UNIT["F32"])
            # Every rounding keeps the order of numbers, so the ends of the range are its ends.
            low = self._added(delta, low, update - error)
            high = self._added(delta, high, update + error)
        return low.to(self._half), high.to(self._half)

    def _parts(self) -> Iterator[tuple[Delta | None, Expectation]]:
        """Yield what is added and rounded in turn: each update, or the exact sum of all."""
        if not self._expected:
            each = [(delta,) for delta in self._wide.deltas]
            sums = [self._wide.deltas] if self._is_exact else each
            self._expected = [
                Expectation(replace(self._wide, deltas=deltas), self._recipe) for deltas in sums
            ]
        deltas = [None] if self._is_exact else self._step.deltas
        yield from zip(deltas, self._expected, strict=True)

    def _added(self, delta: Delta | None, base: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        """Add an update to rows of the base with the library's roundings, in float64."""
        if delta is None:
            return self._rounded(base + update)
        kind = all_kinds()[delta.kind]
        if kind.change is None and delta.scaling:
            computed = product_dtype(delta, self._step.merge_dtype, exact=False)
            if computed in HALF_DTYPES:  # loralib's product and its scaling are rounded
                update = self._rounded(self._rounded(update / delta.scaling) * delta.scaling)
        if delta.recipe in kind.twice:
            update = self._rounded(update)
        if delta.kind in _TWO_SUMS:
            once = update / 2
            return self._rounded(self._rounded(base + self._rounded(once)) + once)
        return self._rounded(base + update)

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._base).double()
