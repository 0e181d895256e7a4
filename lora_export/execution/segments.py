"""The pieces an output file is made of, in order: literal bytes, copied ranges, merged rows."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Protocol

from lora_export.checkpoint.files import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.header import encode_header
from lora_export.checkpoint.tensors import read_tensor, tensor_bytes, torch_dtype
from lora_export.errors import FitError, InputError
from lora_export.execution.arithmetic import PIECE_BYTES, matrix_of, read_factors, row_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_export.execution.arithmetic import StepFactors
    from lora_export.records import MergePlan, ShardPlan, Step, TensorRef, TensorSpec

    Content = bytes | bytearray | memoryview

CHUNK = PIECE_BYTES
"""Bytes of a copied piece."""

_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


class Watcher(Protocol):
    """Who looks at every piece as it was read back from the output, while it is still hot."""

    def copied(self, name: str, source: bytes, written: bytearray) -> None:
        """A range of tensors, the last of them called `name`: its source and what was written."""

    def merged(self, step: Step, first: int, base: torch.Tensor, written: torch.Tensor) -> None:
        """Rows of a merged matrix from `first` on: of the base, and what was written."""


class Segment(Protocol):
    """One piece of an output file."""

    @property
    def length(self) -> int:
        """Bytes it takes in the output."""

    def write(self, descriptor: int, offset: int) -> Content | None:
        """Write the piece at `offset` of the output; its bytes, if they were in memory."""

    def prove(self, written: bytearray, watcher: Watcher) -> Content:
        """Show the watcher what was written beside what it was made of, and return the latter.

        What a new tensor is made of is no part of the base's file: then nothing is returned.
        """


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that were made in memory: a header."""

    content: bytes

    @property
    def length(self) -> int:
        """Bytes it takes in the output."""
        return len(self.content)

    def write(self, descriptor: int, offset: int) -> Content:
        """Write the bytes."""
        pwrite_all(descriptor, memoryview(self.content), offset)
        return self.content

    def prove(self, written: bytearray, watcher: Watcher) -> Content:
        """Hold the bytes against themselves."""
        watcher.copied("the header", self.content, written)
        return b""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of an input file, one or more whole tensors or a part of one, copied by the kernel."""

    file: Path
    start: int
    length: int
    name: str
    is_new: bool = False

    def write(self, descriptor: int, offset: int) -> None:
        """Copy the range; where the kernel cannot, by reading and writing."""
        with open_for_reading(self.file) as source:
            done = _kernel_copy(source, descriptor, self.start, offset, self.length)
            while done < self.length:
                part = pread_exact(source, min(CHUNK, self.length - done), self.start + done)
                if not part:
                    raise InputError("the file ends early", where=f"{self.file}: {self.name}")
                pwrite_all(descriptor, memoryview(part), offset + done)
                done += len(part)

    def prove(self, written: bytearray, watcher: Watcher) -> Content:
        """Hold the copy against its source, read again."""
        with open_for_reading(self.file) as source, system_errors(self.file, "read"):
            content = pread_exact(source, self.length, self.start)
        watcher.copied(self.name, content, written)
        return b"" if self.is_new else content


@dataclass(frozen=True, slots=True)
class Dense:
    """A tensor that must be laid out or converted first: a strided one, or one of another dtype."""

    step: Step

    @property
    def length(self) -> int:
        """Bytes it takes in the output."""
        return self.step.out.nbytes

    def write(self, descriptor: int, offset: int) -> Content:
        """Write the tensor, row-major, in the output's dtype."""
        content = self._content()
        pwrite_all(descriptor, content, offset)
        return content

    def prove(self, written: bytearray, watcher: Watcher) -> Content:
        """Hold it against the source, laid out again."""
        watcher.copied(self.step.out.name, bytes(self._content()), written)
        return b""

    def _content(self) -> memoryview:
        """As load_state_dict would copy it into the base's tensor."""
        tensor = read_tensor(self.step.source)
        return tensor_bytes(tensor.to(torch_dtype(self.step.out.dtype)))


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
    """Adjoining blocks of rows of a merged tensor's matrix, of each its first row and its end."""

    merge: Merge
    blocks: Sequence[tuple[int, int]]

    @property
    def first(self) -> int:
        """The first row."""
        return self.blocks[0][0]

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.blocks[-1][1]

    @property
    def length(self) -> int:
        """Bytes it takes in the output."""
        return (self.stop - self.first) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.merge.step.out.nbytes // matrix_of(self.merge.step)[0]

    def write(self, descriptor: int, offset: int) -> Content:
        """Merge the rows and write them."""
        content = tensor_bytes(self._merged(self.base()))
        pwrite_all(descriptor, content, offset)
        return content

    def _merged(self, base: torch.Tensor) -> torch.Tensor:
        if len(self.blocks) == 1:
            return self.merge.rows(base, *self.blocks[0])
        merged = base.new_empty(base.shape)
        for first, stop in self.blocks:
            part = slice(first - self.first, stop - self.first)
            merged[part] = self.merge.rows(base[part], first, stop)
        return merged

    def prove(self, written: bytearray, watcher: Watcher) -> Content:
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


def pwrite_all(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of `content` at `offset`, however many calls it takes."""
    rest = content.cast("B")
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def _kernel_copy(source: int, target: int, start: int, offset: int, length: int) -> int:
    """copy_file_range as far as it goes: the bytes copied (a reflink where that is possible)."""
    done = 0
    try:
        while done < length:
            count = os.copy_file_range(source, target, length - done, start + done, offset + done)
            if count == 0:
                break
            done += count
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
    return done


def header_segment(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> Literal:
    """The header of a safetensors file."""
    return Literal(encode_header(specs, metadata))


def segments_of(plan: MergePlan, shard: ShardPlan) -> Iterator[Segment]:
    """All pieces of an output file: the header, then every tensor in order."""
    yield header_segment([step.out for step in shard.steps], shard.metadata)
    waiting: Range | None = None
    for step in shard.steps:
        piece = _copied(step)
        if piece is not None and waiting is not None and _adjoins(waiting, piece):
            waiting = replace(piece, start=waiting.start, length=waiting.length + piece.length)
            continue
        if waiting is not None:
            yield from cut(waiting)
        waiting = piece
        if piece is None:
            yield from _made(plan, step)
    if waiting is not None:
        yield from cut(waiting)


def _copied(step: Step) -> Range | None:
    ref: TensorRef = step.source
    plain = not step.deltas and ref.strides is None and ref.spec.dtype == step.out.dtype
    if not plain:
        return None
    return Range(ref.file, ref.offset, ref.length, step.out.name, is_new=step.action != "copy")


def _adjoins(left: Range, right: Range) -> bool:
    same = (left.file, left.is_new) == (right.file, right.is_new)
    return same and left.start + left.length == right.start


def cut(whole: Range) -> Iterator[Range]:
    """The range in pieces of at most CHUNK bytes."""
    for at in range(0, whole.length, CHUNK):
        yield replace(whole, start=whole.start + at, length=min(CHUNK, whole.length - at))


def _made(plan: MergePlan, step: Step) -> Iterator[Segment]:
    if not step.deltas:
        yield Dense(step)
        return
    pieces = row_pieces(step)
    merge = Merge(step, plan.recipe, sum(map(len, pieces)))
    for blocks in pieces:
        yield Rows(merge, blocks)
