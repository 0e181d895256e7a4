"""The rows of one merged tensor before they were rounded to half precision.

The outputs of a model in bfloat16 hide an error of several percent in an update. Without the
rounding, the outputs are compared as tightly as those of a model in float32. The unmerged model
shares no code with the merge, so an error of the merge stays visible.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import torch_dtype
from lora_export.execution.arithmetic import matrix_of, read_factors, row_blocks
from lora_export.execution.rows import read_rows
from lora_export.layers.threads import one_thread_each
from lora_export.records import HALF_DTYPES
from lora_export.verification.unrounded.other_orders import OtherOrders
from lora_export.verification.weights.reductions import rows_that_differ

if TYPE_CHECKING:
    import torch

    from lora_export.execution.arithmetic import StepFactors
    from lora_export.records import Step, TensorRef


def is_rounded(step: Step) -> bool:
    """Return whether the step's updates are added and the sum is rounded to half precision."""
    return bool(step.deltas) and step.out.dtype in HALF_DTYPES


def in_float32(step: Step) -> Step:
    """Return the same step for a float32 weight: no result of it is rounded to half precision.

    The factors are rounded as before, because the unmerged model reads them in the same way.
    """
    deltas = tuple(replace(delta, dtype="F32") for delta in step.deltas)
    return replace(step, out=replace(step.out, dtype="F32"), deltas=deltas, is_widened=False)


class UnroundedTensor:
    """One stored merged tensor, plus what rounding took from the merge's own result.

    A right tensor gives the result of the merge in float32, and any other one keeps its error.
    Factors are in memory from the first rows that are asked for until the last row of the tensor.
    """

    def __init__(self, step: Step, recipe: str, stored: TensorRef) -> None:
        """Describe the tensor; no file is read yet.

        Args:
            step: how the tensor was merged; see `is_rounded`.
            recipe: the plan's recipe.
            stored: the tensor in the result, of the step's dtype and shape.
        """
        #: How the tensor was merged.
        self.step = step
        #: (rows, columns) of the matrix in which the tensor was merged.
        self.matrix = matrix_of(step)
        #: The tensor in the result.
        self.stored = stored
        self._recipe = recipe
        self._half = torch_dtype(step.out.dtype)
        #: The factors for a float32 weight.
        self._wide: StepFactors | None = None
        #: The factors as the merge reads them; needed where an element is no plain rounding.
        self._narrow: StepFactors | None = None
        # The merge's own blocks: other blocks may have other last bits.
        self._blocks = row_blocks(step)
        self._last: tuple[tuple[int, int], torch.Tensor] | None = None

    def rows(self, first: int, stop: int, source: torch.Tensor | None = None) -> torch.Tensor:
        """Compute rows `first` to `stop` - 1 of the matrix.

        source: the same rows of the base in float32, if they are read already.

        Returns:
            A float32 matrix of these rows, (stop - first, columns).

        Raises:
            InputError: a factor holds NaN or infinity, or a file is damaged.
            StorageError: a file cannot be read.
        """
        import torch

        if source is not None and (first, stop) in self._blocks:
            return self._block(first, stop, source)
        parts = []
        for low, high in self._blocks:
            if low < stop and first < high:
                inside = slice(max(first - low, 0), min(stop, high) - low)
                parts.append(self._block(low, high)[inside])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _block(self, first: int, stop: int, source: torch.Tensor | None = None) -> torch.Tensor:
        """Compute one of the merge's blocks, or return it where it is the last that was asked."""
        if self._last is None or self._last[0] != (first, stop):
            self._last = None  # frees its memory before the next one is computed
            self._last = (first, stop), self._computed(first, stop, source)
        block = self._last[1]
        if stop == self.matrix[0]:
            self._wide = self._narrow = self._last = None
        return block

    def _computed(self, first: int, stop: int, source: torch.Tensor | None) -> torch.Tensor:

        if source is None:
            source = read_rows(self.step, first, stop)
        stored = read_rows(self.step, first, stop, self.stored)
        self._wide = self._wide or read_factors(in_float32(self.step), self._recipe)
        with one_thread_each():  # as in the merge
            unrounded = self._wide.rows(source.float(), first, stop)
        if rows_that_differ(unrounded.to(self._half), stored).numel():
            self._add_error(unrounded, first, source, stored)
        return unrounded

    def _add_error(
        self, unrounded: torch.Tensor, first: int, source: torch.Tensor, stored: torch.Tensor
    ) -> None:
        """Add to the unrounded rows what the stored ones differ from the merge's, in place.

        A library may round more than once. So its result is computed as the merge computes it.
        """
        self._narrow = self._narrow or read_factors(self.step, self._recipe)
        with one_thread_each():
            base = source.to(torch_dtype(self.step.merge_dtype))
            merged = self._narrow.rows(base, first, first + len(source)).to(self._half)
        error = stored.float() - merged.float()
        error[stored == unrounded.to(self._half)] = 0
        if error.any():
            orders = OtherOrders(self.step, in_float32(self.step), self._recipe)
            error[orders.explain(first, source, stored, merged)] = 0
            unrounded += error
