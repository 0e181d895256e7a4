"""An output file while it is written: its pieces, how far they are, and its digests."""

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
"""Bytes that one call reserves; a call takes a tenth of a second and cannot be interrupted."""


@dataclass(slots=True)
class Lane:
    """A digest that takes the pieces in order, from one thread at a time."""

    sha: HASH = field(default_factory=hashlib.sha256)
    skip: int = 0
    """Bytes that are in the digest already and will come once more."""
    place: int = 0
    """The number of the next piece."""
    is_taken: bool = False
    """Whether a thread is updating the digest now."""

    def update(self, content: Content) -> None:
        """Add the next bytes to the digest."""
        known = min(self.skip, len(content))
        self.skip -= known
        self.sha.update(memoryview(content)[known:])


@dataclass(slots=True)
class FileTask:
    """One output file: what it will hold, and how far it is written.

    The pipeline changes `claimed`, `hashed`, `workers`, `pieces` and the lanes under its lock.
    """

    path: Path
    name: str
    """The name in the list of outputs."""
    make: Callable[[], Iterable[Segment]]
    """Makes the pieces when the file's turn comes; only those of open files are in memory."""
    tensor_bytes: int
    """Bytes of all pieces but the header, for the progress."""
    lanes: list[Lane] = field(default_factory=lambda: [Lane()])
    """The digest of this file, and that of the base's file if its bytes pass whole and in order."""
    size: int = 0
    """Bytes of the whole file."""
    claimed: int = 0
    """How many pieces threads have taken."""
    hashed: int = 0
    """How many pieces have passed every lane."""
    workers: int = 0
    """How many threads are writing pieces of this file."""
    copied: int = 0
    """Of how many first pieces the head start has copied the ranges."""
    is_created: bool = False
    descriptor: int = -1
    segments: Sequence[Segment] = ()
    unchanged: list[str] = field(default_factory=list)
    """Merged tensors that are equal to the base, by name."""
    offsets: list[int] = field(default_factory=list)
    """Where each piece begins in the file."""
    pieces: dict[int, tuple[Content, Content]] = field(default_factory=dict)
    """By number, the bytes of pieces that have not passed every lane: (output's, base's)."""

    def open(self) -> None:
        """Open the file; it must not exist before this task's own first call.

        Raises:
            StorageError: the system refuses.
        """
        new = 0 if self.is_created else os.O_CREAT | os.O_EXCL
        with system_errors(self.path, "create"):
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | new, 0o666)
        self.is_created = True

    def close(self) -> None:
        """Close the file.

        Raises:
            StorageError: an earlier write failed; some file systems report that only here.
        """
        with system_errors(self.path, "write", self.size):
            os.close(self.descriptor)

    def prepare(self) -> None:
        """Make the pieces, and compute where each begins and the size of the file."""
        self.segments = list(self.make())
        for segment in self.segments:
            self.offsets.append(self.size)
            self.size += segment.length

    def copy_ahead(self, is_stopped: Callable[[], bool]) -> None:
        """Reserve room for the file, then copy its ranges, until `is_stopped` returns True.

        Neither needs torch. Reserving pays off: a new page of a file in memory, or a new block of a
        disk, costs more than filling it.

        Raises:
            StorageError: the system refuses.
            InputError: an input file ends early.
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
            # Made anew by `prepare`: only the pieces of open files are held in memory.
            self.segments, self.offsets, self.size = (), [], 0

    def _reserve(self, is_stopped: Callable[[], bool]) -> None:
        for start in range(0, self.size, RESERVED_BYTES):
            if is_stopped():
                break
            with system_errors(self.path, "write", self.size):
                reserve(self.descriptor, start, min(RESERVED_BYTES, self.size - start))

    def is_copied(self, place: int) -> bool:
        """Return whether the head start has copied the piece."""
        return place < self.copied and isinstance(self.segments[place], Range)

    def clear(self) -> None:
        """Release the pieces; keep the names of tensors that are equal to the base."""
        merges = {id(s.merge): s.merge for s in self.segments if isinstance(s, Rows)}
        self.unchanged = [m.step.out.name for m in merges.values() if not m.changed]
        self.segments, self.offsets = (), []

    @property
    def is_claimed(self) -> bool:
        """Return whether threads have taken all pieces."""
        return self.claimed == len(self.segments)

    def result(self) -> WrittenFile:
        """Return name, digest and size of the finished file."""
        return WrittenFile(self.name, self.lanes[0].sha.hexdigest(), self.size)
