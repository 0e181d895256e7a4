"""The pieces of an output file that are computed: blocks of rows of merged tensors."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor, tensor_bytes, torch_dtype
from lora_export.errors import FitError, InputError
from lora_export.execution.arithmetic import matrix_of, read_factors
from lora_export.execution.casting import wider_dtype
from lora_export.execution.segments import pwrite_all

if TYPE_CHECKING:
    import torch

    from lora_export.execution.arithmetic import StepFactors
    from lora_export.execution.segments import Content, Watcher
    from lora_export.records import Step, TensorRef


@dataclass(slots=True)
class Merge:
    """What the blocks of one merged tensor share."""

    step: Step
    recipe: str
    left: int
    """How many blocks are still to be made; the factors are released with the last."""
    changed: bool = False
    """Whether some block differs from the base."""
    _factors: StepFactors | None = None
    """Read when the first block is made."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the factors are read, so that one thread reads them for all."""

    def rows(self, base: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """Compute merged rows in the output's dtype; see arithmetic.StepFactors.rows.

        base: the rows of the base, in the step's merge_dtype.

        Raises:
            InputError: a factor or the base's rows hold NaN or infinity.
            FitError: the merged rows overflow the dtype.
        """
        import torch

        stored = torch_dtype(self.step.out.dtype)

        with self._lock:
            factors = self._factors = self._factors or read_factors(self.step, self.recipe)
            self.left -= 1
            if self.left == 0:
                self._factors = None
        merged = factors.rows(base, first, stop).to(stored)
        # A finite sum has finite terms. It takes a tenth of the time of a test of every element.
        if not isfinite(merged.sum()) and not torch.isfinite(merged).all():
            refuse_non_finite(self.step, base)
            hint = f"check alpha, or {wider_dtype(self.step.out.dtype)}"
            message = f"the merged weight overflows {self.step.out.dtype}"
            raise FitError(message, where=self.step.out.name, hint=hint, cause="fit/overflow")
        self.changed = self.changed or differ(base.to(stored), merged)
        return merged


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether any element differs between two matrices of one shape and dtype."""
    import torch

    # Of an update, the first row nearly always differs; the rest is then not compared.
    return not torch.equal(one[:1], other[:1]) or not torch.equal(one, other)


def refuse_non_finite(step: Step, base: torch.Tensor) -> None:
    """Refuse rows of the base weight of `step` that are no numbers; no proof could cover them.

    Raises:
        InputError: the rows hold NaN or infinity.
    """
    import torch

    if not isfinite(base.sum()) and not torch.isfinite(base).all():
        where = f"{step.source.file}: {step.source.spec.name}"
        hint = "the base is damaged: copy or download it again"
        raise InputError(
            "the adapted weight holds NaN or infinity",
            where=where,
            hint=hint,
            cause="input/not-finite",
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of a merged tensor's matrix."""

    merge: Merge
    first: int
    """The first row."""
    stop: int
    """The row after the last."""

    @property
    def length(self) -> int:
        """Return the number of bytes that the block takes in the output."""
        step = self.merge.step
        return (self.stop - self.first) * (step.out.nbytes // matrix_of(step)[0])

    def write(self, descriptor: int, offset: int) -> Content:
        """Merge the rows and write them."""
        content = tensor_bytes(self.merge.rows(self.base(), self.first, self.stop))
        pwrite_all(descriptor, content, offset)
        return content

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Show the base's and the written rows to the watcher; return the base's bytes."""
        import torch

        step = self.merge.step
        dtype = torch_dtype(step.out.dtype)
        rows = torch.frombuffer(written, dtype=dtype).view(self.stop - self.first, -1)
        read = read_rows(step, self.first, self.stop)
        watcher.merged(step, self.first, read.to(torch_dtype(step.merge_dtype)), rows)
        return tensor_bytes(read) if step.action == "merge" else b""

    def base(self) -> torch.Tensor:
        """Read these rows of the base as a matrix of the step's merge_dtype."""
        rows = read_rows(self.merge.step, self.first, self.stop)
        return rows.to(torch_dtype(self.merge.step.merge_dtype))


def read_rows(step: Step, first: int, stop: int, ref: TensorRef | None = None) -> torch.Tensor:
    """Read rows of the matrix in which the base tensor of `step` is merged.

    ref: another tensor of the same shape to read instead.

    Raises:
        InputError: the file ends early.
        StorageError: the file cannot be read.
    """
    rows, columns = matrix_of(step)
    ref = ref or step.source
    if (first, stop) == (0, rows) or ref.strides is not None:  # strided rows lie anywhere
        return read_tensor(ref).reshape(rows, columns)[first:stop]
    return read_tensor(ref.part(first * columns, (stop - first, columns)))
