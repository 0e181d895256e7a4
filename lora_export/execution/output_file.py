"""An output file on its way: its pieces, how far they are, and the digests taken on the way."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.reserve import reserve
from lora_export.checkpoint.reading import system_errors
from lora_export.execution.rows import Rows
from lora_export.execution.segments import Range
from lora_export.records import WrittenFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from hashlib import _Hash as HASH
    from pathlib import Path

    from lora_export.execution.segments import Content, Segment


RESERVED_BYTES = 1 << 28
"""What is reserved in one call, which takes a tenth of a second and cannot be stopped."""


@dataclass(slots=True)
class Lane:
    """A digest that is carried on piece by piece, in order, by one thread at a time.

    skip: bytes that are in the digest already, and will pass by once more. place: the next piece.
    """

    sha: HASH = field(default_factory=hashlib.sha256)
    skip: int = 0
    place: int = 0
    is_taken: bool = False

    def update(self, content: Content) -> None:
        """Take the next bytes in."""
        known = min(self.skip, len(content))
        self.skip -= known
        self.sha.update(memoryview(content)[known:])


@dataclass(slots=True)
class FileTask:
    """One output file.

    make: gives the pieces when the file's turn comes, so that only the open files' are in memory.
    tensor_bytes: of all pieces but headers, for the progress. lanes: the digest of the file, and
    where its bytes pass by whole and in order, that of the base's file. claimed, hashed: pieces.
    pieces: what has been written, and not passed every lane yet. copied: of so many first pieces,
    the ranges have been copied before the task was opened. unchanged: merged tensors that came out
    equal to the base.
    """

    path: Path
    name: str
    make: Callable[[], Iterable[Segment]]
    tensor_bytes: int
    lanes: list[Lane] = field(default_factory=lambda: [Lane()])
    size: int = 0
    claimed: int = 0
    hashed: int = 0
    workers: int = 0
    copied: int = 0
    is_created: bool = False
    descriptor: int = -1
    segments: Sequence[Segment] = ()
    unchanged: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    pieces: dict[int, tuple[Content, Content]] = field(default_factory=dict)

    def open(self) -> None:
        """Open the file, which must not exist before this task's own first call."""
        new = 0 if self.is_created else os.O_CREAT | os.O_EXCL
        with system_errors(self.path, "create"):
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | new, 0o666)
        self.is_created = True

    def close(self) -> None:
        """Close the file, which the system may only then say that it could not write."""
        with system_errors(self.path, "write", self.size):
            os.close(self.descriptor)

    def prepare(self) -> None:
        """Make the pieces and their places in the file."""
        self.segments = list(self.make())
        for segment in self.segments:
            self.offsets.append(self.size)
            self.size += segment.length

    def copy_ahead(self, is_stopped: Callable[[], bool]) -> None:
        """Get room for the file, then copy its ranges, as neither needs torch, until told to stop.

        A new page of a file in memory costs more than filling it; a new block of a disk no less.
        """
        self.prepare()
        self.open()
        try:
            self._reserve(is_stopped)
            for place, segment in enumerate(self.segments):
                if is_stopped():
                    break
                if isinstance(segment, Range):
                    with system_errors(self.path, "write", self.size):
                        segment.write(self.descriptor, self.offsets[place])
                self.copied = place + 1
        finally:
            self.close()
            self.segments, self.offsets, self.size = (), [], 0

    def _reserve(self, is_stopped: Callable[[], bool]) -> None:
        for start in range(0, self.size, RESERVED_BYTES):
            if is_stopped():
                break
            with system_errors(self.path, "write", self.size):
                reserve(self.descriptor, start, min(RESERVED_BYTES, self.size - start))

    def is_copied(self, place: int) -> bool:
        """Whether the piece is in the file already."""
        return place < self.copied and isinstance(self.segments[place], Range)

    def clear(self) -> None:
        """Let the pieces go, and keep what is to be told of them."""
        merges = {id(s.merge): s.merge for s in self.segments if isinstance(s, Rows)}
        self.unchanged = [m.step.out.name for m in merges.values() if not m.changed]
        self.segments, self.offsets = (), []

    @property
    def is_claimed(self) -> bool:
        """Nothing is left to claim."""
        return self.claimed == len(self.segments)

    def result(self) -> WrittenFile:
        """Name, digest and size of the finished file."""
        return WrittenFile(self.name, self.lanes[0].sha.hexdigest(), self.size)
