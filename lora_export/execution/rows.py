"""The rows of merged tensors: the pieces of an output file that are computed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor, tensor_bytes, torch_dtype
from lora_export.errors import FitError, InputError
from lora_export.execution.arithmetic import matrix_of, read_factors
from lora_export.execution.segments import pwrite_all

if TYPE_CHECKING:
    import torch

    from lora_export.execution.arithmetic import StepFactors
    from lora_export.execution.segments import Content, Watcher
    from lora_export.records import Step, TensorRef


@dataclass(slots=True)
class Merge:
    """What the blocks of one merged tensor share: the factors, read when the first block is made.

    left: blocks still to be made; with the last one the factors are let go. changed: set by any
    block whose bytes differ from the base's.
    """

    step: Step
    recipe: str
    left: int
    changed: bool = False
    _factors: StepFactors | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rows(self, base: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """The merged rows; see arithmetic.StepFactors.rows.

        Raises:
            InputError: the base holds NaN or infinity there.
            FitError: they overflow the dtype.
        """
        import torch

        with self._lock:
            factors = self._factors = self._factors or read_factors(self.step, self.recipe)
            self.left -= 1
            if self.left == 0:
                self._factors = None
        merged = factors.rows(base, first, stop)
        # A finite sum has finite terms; it takes a tenth of the time of looking at each.
        if not isfinite(merged.sum()) and not torch.isfinite(merged).all():
            refuse_non_finite(self.step, base)
            message = f"the merged weight overflows {self.step.out.dtype}"
            raise FitError(message, where=self.step.out.name, hint="is alpha right?")
        self.changed = self.changed or differ(base, merged)
        return merged


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether any element does; where the first rows do, the others are not looked at."""
    import torch

    return not torch.equal(one[:1], other[:1]) or not torch.equal(one, other)


def refuse_non_finite(step: Step, base: torch.Tensor) -> None:
    """Nothing can be proven of a weight that is no number.

    Raises:
        InputError: rows of the base weight of `step` hold NaN or infinity.
    """
    import torch

    if not isfinite(base.sum()) and not torch.isfinite(base).all():
        where = f"{step.source.file}: {step.source.spec.name}"
        hint = "the base is damaged: an update cannot be merged into what is no number"
        raise InputError("the adapted weight holds NaN or infinity", where=where, hint=hint)


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of a merged tensor's matrix: the first, and the one after the last."""

    merge: Merge
    first: int
    stop: int

    @property
    def length(self) -> int:
        """Bytes it takes in the output."""
        step = self.merge.step
        return (self.stop - self.first) * (step.out.nbytes // matrix_of(step)[0])

    def write(self, descriptor: int, offset: int) -> Content:
        """Merge the rows and write them."""
        content = tensor_bytes(self.merge.rows(self.base(), self.first, self.stop))
        pwrite_all(descriptor, content, offset)
        return content

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Show base and merged rows to the watcher."""
        import torch

        dtype = torch_dtype(self.merge.step.out.dtype)
        rows = torch.frombuffer(written, dtype=dtype).view(self.stop - self.first, -1)
        base = self.base()
        watcher.merged(self.merge.step, self.first, base, rows)
        return tensor_bytes(base) if self.merge.step.action == "merge" else b""

    def base(self) -> torch.Tensor:
        """These rows of the base, as a matrix."""
        rows = read_rows(self.merge.step, self.first, self.stop)
        return rows.to(torch_dtype(self.merge.step.out.dtype))


def read_rows(step: Step, first: int, stop: int, ref: TensorRef | None = None) -> torch.Tensor:
    """Rows of the matrix in which the base tensor of `step`, or `ref` of its shape, is merged."""
    rows, columns = matrix_of(step)
    ref = ref or step.source
    if (first, stop) == (0, rows) or ref.strides is not None:
        return read_tensor(ref).reshape(rows, columns)[first:stop]
    row = ref.spec.nbytes // rows
    spec = replace(ref.spec, shape=(stop - first, columns))
    part = replace(ref, spec=spec, offset=ref.offset + first * row, length=(stop - first) * row)
    return read_tensor(part)
