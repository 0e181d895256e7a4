"""Compares rows of one merged tensor with the update recomputed in float64.

Half-precision weights are screened in float32 first. An element that equals the float32
recomputation, rounded to its dtype, is within the bound. Rows with any other element are recomputed
in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import torch_dtype
from lora_export.execution.arithmetic import is_cuttable, is_exact_sum, matrix_of
from lora_export.execution.rows import differ
from lora_export.records import HALF_DTYPES
from lora_export.verification.factors import factors_of, needed_for
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.formulas.unit_roundoff import UNIT
from lora_export.verification.kinds import proof_of
from lora_export.verification.weights.joined_product import join_products
from lora_export.verification.weights.reductions import (
    distances,
    root_mean_square,
    rows_that_differ,
    sum_of_squares,
)
from lora_export.verification.weights.rounding import element_bound, update_error
from lora_export.verification.weights.survival import Stored, measure, row_step
from lora_export.verification.weights.tally import Seen, worse

if TYPE_CHECKING:
    import torch

    from lora_export.records import Step

SCREENED_ELEMENTS = 1 << 20
"""Elements of a block that is screened in float32; it takes two arrays of that size."""

WIDE_ELEMENTS = 1 << 17
"""Elements of a block that is compared in float64; it takes a dozen arrays of that size."""


class Expectation:
    """The expected rows of one merged tensor; its factors are read once for all blocks."""

    def __init__(self, step: Step, recipe: str) -> None:
        """Read the factors of all updates of `step`.

        recipe: the plan's recipe; "exact" asks for the exact sum.

        Raises:
            InputError: a file of an adapter is damaged.
            StorageError: a file cannot be read.
        """
        self.step = step
        self.rows = matrix_of(step)[0]
        self._is_whole = not is_cuttable(step)
        self._dtype = step.out.dtype
        exact = is_exact_sum(step, recipe)
        # A kind that adds twice rounds to delta.dtype between; an exact sum is float32 there.
        between = "F64" if step.merge_dtype == "F64" else "F32"
        self._deltas = [replace(d, dtype=between) if exact else d for d in step.deltas]
        self._wide = [factors_of(delta, exact=exact, narrow=True) for delta in step.deltas]
        self._scales = [scaling_of(delta) for delta in step.deltas]
        self._share, self._rest = update_error(step.deltas, step.merge_dtype, exact=exact)
        self._is_even = all(proof_of(delta).is_screened for delta in step.deltas)
        self._screens = self._is_even and self._dtype in HALF_DTYPES
        if self._screens:
            self._largest = self._largest_magnitude()
        self._product = None
        if self._screens:
            self._product = join_products(self._deltas, self._wide, self._scales)
        self._is_changed = False

    def look(self, first: int, base: torch.Tensor, written: torch.Tensor) -> list[Seen]:
        """Compare written rows from `first` on with the expected ones.

        The rows are cut into blocks of at most SCREENED_ELEMENTS or WIDE_ELEMENTS, which bounds the
        memory. The merge's own blocks may be larger, because their bits depend on their size.

        Args:
            first: the number of the first row.
            base: these rows of the base, in the step's merge_dtype.
            written: the same rows as read back, in the output's dtype.

        Returns:
            what each block shows.
        """
        elements = SCREENED_ELEMENTS if self._screens else WIDE_ELEMENTS
        rows = max(1, elements // base.shape[1])
        look = self._screened
        if not self._screens:
            look, rows = self._dense, len(base) if self._is_whole else rows
        return [
            look(first + at, base[at : at + rows], written[at : at + rows])
            for at in range(0, len(base), rows)
        ]

    def update_of(
        self, base: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the update of rows and the largest error that the merge may make in it.

        Args:
            base: these rows of the base, in float64.
            rows: their numbers, int64; all of them where the update cannot be cut.

        Returns:
            two float64 matrices of the base's shape.
        """
        update, magnitude = self._update(base, rows)
        return update, magnitude.mul_(self._share).add_(self._rest)

    def _dense(self, first: int, base: torch.Tensor, written: torch.Tensor) -> Seen:
        import torch

        rows = torch.arange(first, first + len(base))
        # Copies, of float64 too: what follows is computed in place.
        wide, there = (each.to(torch.float64, copy=True) for each in (base, written))
        update, magnitude = self._update(wide, rows)
        error = magnitude.mul_(self._share).add_(self._rest)
        exact = wide + update
        distance = distances(there, exact)
        some = self._some(first)
        stored = replace(
            measure(
                self._rounded(base[some]), written[some], exact[some], update[some], self._dtype
            ),
            elements=written.numel(),
            update=sum_of_squares(update),
        )
        along, slanted = self._along(wide, rows, update, error)
        residual = there.sub_(exact.to(written.dtype))
        bound = self._bound(exact, error)
        ulp = torch.maximum(exact.abs_(), wide.abs_()).mul_(2 * UNIT[self._dtype])
        square = along * along
        return Seen(
            rows=len(base),
            error=float(torch.div(distance, bound, out=bound).max()),
            distance=float(distance.max()),
            along=float(residual.mul_(along).sum()),
            norm=float(square.sum()),
            variance=float(ulp.add_(error).mul_(error).mul_(square).sum()),
            systematic=float(along.abs().mul_(slanted).sum()),
            changed=self._differs(base, written),
            stored=stored,
        )

    def _screened(self, first: int, base: torch.Tensor, written: torch.Tensor) -> Seen:
        import torch

        rows = torch.arange(first, first + len(base))
        exact = base.to(torch.float32, copy=True)
        norm = self._add_update(exact, rows)
        typical = root_mean_square(exact)
        error = self._largest * self._share + self._rest
        ulp = 2 * UNIT[self._dtype] * typical
        odd = rows_that_differ(exact.to(written.dtype), written)
        worst = distance = along = 0.0
        size = max(1, WIDE_ELEMENTS // base.shape[1])
        for few in (odd[at : at + size] for at in range(0, len(odd), size)):
            closer = self._look_closer(rows[few], base[few], written[few])
            worst, distance = worse(worst, closer[0]), worse(distance, closer[1])
            along += closer[2]
        return Seen(
            rows=len(base),
            error=worst,
            distance=distance,
            along=along,
            norm=norm,
            variance=error * (error + ulp) * norm,
            systematic=error * (norm * exact.numel()) ** 0.5,
            changed=self._differs(base, written),
            stored=self._stored(rows, base, written, norm),
        )

    def _stored(
        self, rows: torch.Tensor, base: torch.Tensor, written: torch.Tensor, norm: float
    ) -> Stored:
        """Measure what storing left of some of the screened rows.

        norm: the sum of the squares of the update of all of them.
        """
        some = self._some(int(rows[0]))
        if len(few := base[some]) == 0:
            return Stored(elements=written.numel(), update=norm)
        exact = few.double()
        product = self._product
        update = product.rows(rows[some]) if product else self._update(exact, rows[some])[0]
        found = measure(self._rounded(few), written[some], exact.add_(update), update, self._dtype)
        return replace(found, elements=written.numel(), update=norm)

    def _some(self, first: int) -> slice:
        """Return which rows of those from `first` on are measured: all where they differ in kind.

        An update of few rows, or one that depends on the weight, may be of any size in a row.
        """
        step = row_step(self.rows * matrix_of(self.step)[1]) if self._is_even else 1
        return slice(-first % step, None, step)

    def _differs(self, base: torch.Tensor, written: torch.Tensor) -> bool:
        """Return whether any row so far differs from the base; the first difference is enough."""
        self._is_changed = self._is_changed or differ(self._rounded(base), written)
        return self._is_changed

    def _rounded(self, base: torch.Tensor) -> torch.Tensor:
        """Return rows of the base in the output's dtype."""
        return base.to(torch_dtype(self._dtype))

    def _bound(self, exact: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        """Return the bound of elements; `error` has every rounding but the last."""
        once = self.step.is_widened or not self.step.in_turn
        return element_bound(exact, error, self._dtype, once=once)

    def _look_closer(
        self, rows: torch.Tensor, base: torch.Tensor, written: torch.Tensor
    ) -> tuple[float, float, float]:
        """Compute (error, distance, along) of rows that differ from the float32 recomputation.

        See Seen for the three numbers.
        """
        wide = base.double()
        update, magnitude = self._update(wide, rows)
        exact = wide + update
        distance = distances(written, exact)
        bound = self._bound(exact, magnitude * self._share + self._rest)
        residual = written.double() - exact.to(written.dtype).double()
        error = float((distance / bound).max())
        return error, float(distance.max()), float((residual * update).sum())

    def _update(self, base: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the update of rows of the base and its magnitude, all in float64.

        Both are new tensors, which a caller may overwrite.
        """
        update: torch.Tensor | float = 0.0
        magnitude: torch.Tensor | float = 0.0
        for delta, factors, scale in zip(self._deltas, self._wide, self._scales, strict=True):
            proof = proof_of(delta)
            if proof.change is not None:
                part, size = proof.change(delta, factors, scale, base, rows)
            else:
                needed, places = needed_for(delta, factors, rows)
                sizes = {role: factor.abs() for role, factor in needed.items()}
                part = proof.update(delta, needed, places) * scale
                size = proof.update(delta, sizes, places) * abs(scale)
            update, magnitude = part + update, size + magnitude
        return update, magnitude  # type: ignore[return-value]

    def _along(
        self, base: torch.Tensor, rows: torch.Tensor, update: torch.Tensor, error: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the direction in which a wrong scaling moves the result, and the error along it.

        For most kinds they are the update and its whole error; see ProofOfKind.tangent.
        """
        [delta, *more] = self._deltas
        tangent = proof_of(delta).tangent
        if more or tangent is None:
            return update, error
        along, size = tangent(delta, self._wide[0], self._scales[0], base, rows)
        return along, size * self._share + self._rest

    def _add_update(self, exact: torch.Tensor, rows: torch.Tensor) -> float:
        """Add the update to `exact` in float32; return the sum of the update's squares."""
        if self._product:
            return self._product.add_to(exact, int(rows[0]))
        update = self._update32(rows)
        exact.add_(update)
        return sum_of_squares(update)

    def _update32(self, rows: torch.Tensor) -> torch.Tensor:
        parts = []
        for delta, factors, scale in zip(self._deltas, self._wide, self._scales, strict=True):
            needed, places = needed_for(delta, factors, rows)
            narrow = {"A": needed["A"].float(), "B": (needed["B"] * scale).float()}
            parts.append(proof_of(delta).update(delta, narrow, places))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _largest_magnitude(self) -> float:
        """Bound the magnitude of every element of the update.

        By Cauchy and Schwarz it is at most the product of the norms of a row of B and a column of
        A.
        """
        return sum(
            abs(scale)
            * float(factors["A"].norm(dim=0).max())
            * float(factors["B"].norm(dim=1).max())
            for factors, scale in zip(self._wide, self._scales, strict=True)
        )
