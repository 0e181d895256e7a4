"""Reads a bounded sample of the rows of a tensor, for words about a proof that has failed.

The proof itself compares every row. A sample of the largest tensors is enough to name the mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor
from lora_export.execution.arithmetic import is_cuttable, matrix_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_export.records import Step, TensorRef

ELEMENTS = 1 << 18
"""Elements of a tensor that are read; more only where LEAST_ROWS are longer."""

LEAST_ROWS = 64
"""Rows that are read at least: a change of lower rank is recognised in so many."""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows of one tensor, of the base and as stored in the result."""

    numbers: torch.Tensor
    """int64, ascending."""
    base: torch.Tensor
    """(rows, columns) in float64."""
    stored: torch.Tensor
    """(rows, columns) in the dtype of the result."""

    @property
    def merged(self) -> torch.Tensor:
        """Return the stored rows in float64."""
        return self.stored.double()

    @property
    def change(self) -> torch.Tensor:
        """Return what was added to the base, in float64."""
        return self.merged.sub_(self.base)

    @property
    def noise(self) -> float:
        """Return the largest error of rounding to the stored dtype."""
        import torch

        if not self.stored.is_floating_point():
            return 0.0
        return torch.finfo(self.stored.dtype).eps / 2 * float(self.merged.abs().max())

    @property
    def is_base(self) -> bool:
        """Return whether the stored rows are the base's, rounded to the dtype of the result."""
        return bool((self.base.to(self.stored.dtype) == self.stored).all())


def blank_words(sampled: SampledRows) -> tuple[str, str] | None:
    """Return (code, words) of stored rows that hold no weights: NaN, infinity, or only zeros.

    The words are the end of a sentence whose subject is the tensors.
    """
    stored = sampled.stored
    if bool(stored.isnan().all()):
        return "not-finite", "are all NaN"
    if not bool(stored.isfinite().all()):
        return "not-finite", "hold NaN or infinity"
    if not bool(stored.any()) and bool(sampled.base.any()):
        return "zeros", "are all zeros"
    return None


def sample_step(step: Step, stored: TensorRef) -> SampledRows:
    """Read rows of an adapted tensor: all where its update cannot be computed for some alone.

    step: a step with updates. stored: the tensor in the result, with as many elements.

    Raises:
        InputError, StorageError: a file ends early or cannot be read.
    """
    rows, columns = matrix_of(step)
    trained = [place for delta in step.deltas for place in delta.indices]
    some = not is_cuttable(step)
    numbers = _numbers(rows, columns, trained) if not some else _all(rows)
    return _sample(numbers, columns, step.source, stored)


def sample_pair(source: TensorRef, stored: TensorRef) -> SampledRows:
    """Read rows of two tensors of one shape, as matrices of as many rows as the first dimension.

    Raises:
        InputError, StorageError: a file ends early or cannot be read.
    """
    shape = source.spec.shape or (1,)
    columns = prod(shape[1:])
    return _sample(_numbers(shape[0], columns, ()), columns, source, stored)


def _numbers(rows: int, columns: int, wanted: Sequence[int]) -> torch.Tensor:
    import torch

    count = min(rows, max(LEAST_ROWS, ELEMENTS // max(columns, 1)))
    spread = torch.linspace(0, rows - 1, count).round().long()
    inside = torch.tensor([place for place in wanted[:count] if place < rows], dtype=torch.int64)
    return torch.tensor(sorted({*spread.tolist(), *inside.tolist()}))


def _all(rows: int) -> torch.Tensor:
    import torch

    return torch.arange(rows)


def _sample(
    numbers: torch.Tensor, columns: int, source: TensorRef, stored: TensorRef
) -> SampledRows:
    base = rows_at(source, numbers, columns).double()
    return SampledRows(numbers, base, rows_at(stored, numbers, columns))


def rows_at(ref: TensorRef, numbers: torch.Tensor, columns: int) -> torch.Tensor:
    """Read rows of a tensor that is seen as a matrix of so many columns.

    Raises:
        InputError, StorageError: the file ends early or cannot be read.
    """
    import torch

    if ref.strides is not None or len(numbers) * columns == ref.spec.elements:
        return read_tensor(ref).reshape(-1, columns)[numbers]
    parts = [read_tensor(ref.part(row * columns, (1, columns))) for row in numbers.tolist()]
    return torch.cat(parts)
