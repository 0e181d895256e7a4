"""The pieces of an output file that are an input's values in another dtype, rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.checkpoint.tensors import iter_chunks, read_bytes, tensor_bytes, torch_dtype
from lora_export.errors import FitError
from lora_export.execution.segments import CHUNK, pwrite_all
from lora_export.records import DTYPE_BITS, FLOAT_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lora_export.execution.segments import Content, Watcher
    from lora_export.records import Step, TensorRef

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block in which a stored tensor is compared with its source."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Elements of a dense tensor that are rounded to the output's dtype."""

    step: Step
    start: int
    """The first element, in row-major order."""
    count: int
    """How many elements."""

    @property
    def length(self) -> int:
        """Return the number of bytes that the piece takes in the output."""
        return self.count * DTYPE_BITS[self.step.out.dtype] // 8

    def write(self, descriptor: int, offset: int) -> Content:
        """Round the elements and write them."""
        content = tensor_bytes(rounded(self.step, self._read()))
        pwrite_all(descriptor, content, offset)
        return content

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Round the source again and show it and what was written to the watcher."""
        read = self._read()
        content = tensor_bytes(rounded(self.step, read))
        watcher.copied(self.step.out.name, bytes(content), written)
        return read if self.step.action == "cast" else b""

    def _read(self) -> bytes:
        return read_bytes(self.step.source.part(self.start, (self.count,)))


def cast_pieces(step: Step) -> Iterator[Cast]:
    """Divide a tensor into pieces of at most CHUNK bytes, in the file and in the output."""
    wider = max(DTYPE_BITS[step.source.spec.dtype], DTYPE_BITS[step.out.dtype]) // 8
    size = CHUNK // wider
    for start in range(0, step.out.elements, size):
        yield Cast(step, start, min(size, step.out.elements - start))


def rounded(step: Step, content: bytes | memoryview) -> torch.Tensor:
    """Return elements of the step's source in the output's dtype, by torch's `Tensor.to`.

    content: the bytes of the elements. Infinity and NaN stay what they are.

    Raises:
        FitError: a finite element is too large for the dtype.
    """
    import torch

    wide = torch.frombuffer(bytearray(content), dtype=torch_dtype(step.source.spec.dtype))
    narrow = wide.to(torch_dtype(step.out.dtype))
    if not {step.source.spec.dtype, step.out.dtype} <= FLOAT_DTYPES:
        return narrow  # full_tensors has compared whole numbers already
    # A finite sum has finite terms. It takes a tenth of the time of a test of every element.
    if not isfinite(narrow.sum()) and (narrow.isinf() & wide.isfinite()).any():
        largest = float(wide[wide.isfinite()].abs().max())
        message = f"has values up to {largest:.3g}, which overflow {step.out.dtype}"
        raise FitError(
            message, where=step.out.name, hint=wider_dtype(step.out.dtype), cause="fit/overflow"
        )
    return narrow


def holds_source(step: Step, stored: TensorRef) -> bool:
    """Return whether a stored tensor has the source's bytes, or its values rounded once.

    step: a step without updates. stored: its tensor in a result, of the planned dtype and shape.

    Raises:
        InputError, StorageError: a file ends early or cannot be read.
        FitError: a finite element is too large for the dtype.
    """
    if step.source.spec.dtype == step.out.dtype:
        return same_content(step.source, stored)
    sizes = [BLOCK_ELEMENTS * DTYPE_BITS[ref.spec.dtype] // 8 for ref in (step.source, stored)]
    read, there = iter_chunks(step.source, sizes[0]), iter_chunks(stored, sizes[1])
    return all(
        bytes(tensor_bytes(rounded(step, wide))) == bytes(narrow)
        for wide, narrow in zip(read, there, strict=True)
    )


def wider_dtype(dtype: str) -> str:
    """Return what to do about a tensor that overflows a dtype of the output."""
    if dtype == "F16":
        return "--dtype bfloat16 or --dtype float32 holds larger values"
    if dtype == "BF16":
        return "--dtype float32 holds slightly larger values"
    return "merge into a base of a wider dtype"
