"""The pieces of an output file that are not computed: a header, copied ranges, converted tensors.

Every piece can write itself and prove itself from its source. The pipeline needs nothing else.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from lora_export.checkpoint.header import encode_header
from lora_export.checkpoint.reading import (
    COPY_AGAIN,
    open_for_reading,
    pread_exact,
    system_errors,
)
from lora_export.checkpoint.tensors import read_tensor, tensor_bytes, torch_dtype
from lora_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_export.records import Step, TensorSpec

    Content = bytes | memoryview

CHUNK = 1 << 21
"""Bytes of a copied piece, small enough to stay in a processor's cache for proof and digest."""

_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
"""How copy_file_range answers if this pair of files needs another way to copy."""


class Watcher(Protocol):
    """Checks every piece as it was read back from the output."""

    def copied(self, name: str, source: bytes, written: memoryview) -> None:
        """Compare a range of tensors with its source; `name` is the last tensor's."""

    def merged(self, step: Step, first: int, base: torch.Tensor, written: torch.Tensor) -> None:
        """Check rows of a merged matrix from `first` on against the same rows of the base."""


class Segment(Protocol):
    """One piece of an output file."""

    @property
    def length(self) -> int:
        """Return the number of bytes that the piece takes in the output."""

    def write(self, descriptor: int, offset: int) -> Content | None:
        """Write the piece at `offset` of the output; return its bytes if they are in memory."""

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Show the watcher what was written and its source; return the base's bytes.

        A tensor that the base's file does not hold has none: then nothing is returned.
        """


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that were made in memory: a header."""

    content: bytes

    @property
    def length(self) -> int:
        """Return the number of bytes that the piece takes in the output."""
        return len(self.content)

    def write(self, descriptor: int, offset: int) -> Content:
        """Write the bytes."""
        pwrite_all(descriptor, memoryview(self.content), offset)
        return self.content

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Show the bytes and what was written to the watcher."""
        watcher.copied("the header", self.content, written)
        return b""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of an input file that are copied: one or more whole tensors, or a part of one."""

    file: Path
    start: int
    """The first byte in the file."""
    length: int
    name: str
    """The last tensor's name, for messages."""
    is_new: bool = False
    """Whether the bytes are an adapter's and not the base's."""

    def write(self, descriptor: int, offset: int) -> None:
        """Copy the range in the kernel; by reading and writing where the kernel cannot."""
        with open_for_reading(self.file) as source:
            done = _kernel_copy(source, descriptor, self.start, offset, self.length)
            while done < self.length:
                part = pread_exact(source, min(CHUNK, self.length - done), self.start + done)
                if not part:
                    where = f"{self.file}: {self.name}"
                    raise InputError(
                        "the file ends early", where=where, hint=COPY_AGAIN, cause="input/truncated"
                    )
                pwrite_all(descriptor, memoryview(part), offset + done)
                done += len(part)

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Read the source again and show it and the copy to the watcher."""
        with open_for_reading(self.file) as source, system_errors(self.file, "read"):
            content = pread_exact(source, self.length, self.start)
        watcher.copied(self.name, content, written)
        return b"" if self.is_new else content


@dataclass(frozen=True, slots=True)
class Dense:
    """A tensor that is laid out or converted first: a strided one, or one of another dtype."""

    step: Step

    @property
    def length(self) -> int:
        """Return the number of bytes that the tensor takes in the output."""
        return self.step.out.nbytes

    def write(self, descriptor: int, offset: int) -> Content:
        """Write the tensor, row-major, in the output's dtype."""
        content = self._content()
        pwrite_all(descriptor, content, offset)
        return content

    def prove(self, written: memoryview, watcher: Watcher) -> Content:
        """Lay the source out again and show it and the written tensor to the watcher."""
        watcher.copied(self.step.out.name, bytes(self._content()), written)
        return b""

    def _content(self) -> memoryview:
        """Return the bytes that torch's load_state_dict would copy into the base's tensor."""
        tensor = read_tensor(self.step.source)
        return tensor_bytes(tensor.to(torch_dtype(self.step.out.dtype)))


def pwrite_all(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all of `content` at `offset`; a call of pwrite may write less.

    Raises:
        OSError: the system refuses.
    """
    rest = content.cast("B")
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def _kernel_copy(source: int, target: int, start: int, offset: int, length: int) -> int:
    """Copy by copy_file_range(2) and return how many bytes it copied, perhaps none.

    A file system that can shares the blocks instead of copying them (a reflink).
    """
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
    """Return the header of a safetensors file as a piece."""
    return Literal(encode_header(specs, metadata))


def cut(whole: Range) -> Iterator[Range]:
    """Divide a range into pieces of at most CHUNK bytes."""
    for at in range(0, whole.length, CHUNK):
        yield replace(whole, start=whole.start + at, length=min(CHUNK, whole.length - at))
