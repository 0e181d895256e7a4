"""The pieces an output file is made of: literal bytes, copied ranges, tensors laid out anew."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from lora_export.checkpoint.header import encode_header
from lora_export.checkpoint.reading import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.tensors import read_tensor, tensor_bytes, torch_dtype
from lora_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_export.records import Step, TensorSpec

    Content = bytes | memoryview

CHUNK = 1 << 21
"""Bytes of a copied piece."""

_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


class Watcher(Protocol):
    """Who looks at every piece as it was read back from the output, while it is still hot."""

    def copied(self, name: str, source: bytes, written: memoryview) -> None:
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

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
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

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
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

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
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

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Hold it against the source, laid out again."""
        watcher.copied(self.step.out.name, bytes(self._content()), written)
        return b""

    def _content(self) -> memoryview:
        """As load_state_dict would copy it into the base's tensor."""
        tensor = read_tensor(self.step.source)
        return tensor_bytes(tensor.to(torch_dtype(self.step.out.dtype)))


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


def cut(whole: Range) -> Iterator[Range]:
    """The range in pieces of at most CHUNK bytes."""
    for at in range(0, whole.length, CHUNK):
        yield replace(whole, start=whole.start + at, length=min(CHUNK, whole.length - at))
