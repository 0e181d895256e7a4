"""Writes several files at once in threads, each piece hashed and shown in order while it is hot.

A thread takes the next piece of a file, writes it, and then carries on with whatever of that file
is next in order: reads it back, hashes it, shows it to the watcher. With as many files as threads
each thread has a file of its own; threads without one help with the others' pieces.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.checkpoint.files import system_errors
from lora_export.errors import StorageError
from lora_export.execution.segments import Rows
from lora_export.records import WrittenFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from hashlib import _Hash as HASH
    from pathlib import Path

    from lora_export.execution.segments import Segment, Watcher

AHEAD = 4
"""Pieces of one file that may be written before the oldest of them has been hashed, a thread."""


@dataclass(slots=True)
class FileTask:
    """One output file: its pieces, and how far they are claimed, written and hashed.

    make: gives the pieces when the file's turn comes, so that only the open files' are in memory.
    tensor_bytes: of all pieces but headers, for the progress. source: the digest of the base's
    file so far, where its bytes pass by whole and in order. unchanged: merged tensors that came
    out equal to the base.
    """

    path: Path
    name: str
    make: Callable[[], Iterable[Segment]]
    tensor_bytes: int
    source: HASH | None = None
    size: int = 0
    claimed: int = 0
    hashed: int = 0
    workers: int = 0
    is_hashing: bool = False
    descriptor: int = -1
    segments: Sequence[Segment] = ()
    unchanged: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    buffer: bytearray = field(default_factory=bytearray)
    sha: HASH = field(default_factory=hashlib.sha256)

    def prepare(self) -> None:
        """Make the pieces and their places in the file."""
        self.segments = list(self.make())
        for segment in self.segments:
            self.offsets.append(self.size)
            self.size += segment.length

    def clear(self) -> None:
        """Let the pieces go, and keep what is to be told of them."""
        merges = {id(s.merge): s.merge for s in self.segments if isinstance(s, Rows)}
        self.unchanged = [m.step.out.name for m in merges.values() if not m.changed]
        self.segments, self.offsets, self.buffer = (), [], bytearray()

    @property
    def is_claimed(self) -> bool:
        """Nothing is left to claim."""
        return self.claimed == len(self.segments)

    def result(self) -> WrittenFile:
        """Name, digest and size of the finished file."""
        return WrittenFile(self.name, self.sha.hexdigest(), self.size)


class Pipeline:
    """Runs the tasks; the first error of any thread stops all of them."""

    def __init__(
        self,
        tasks: Sequence[FileTask],
        jobs: int,
        watcher: Watcher | None,
        progress: Callable[[int, int], None],
    ) -> None:
        """`progress` is told the bytes done so far, and in all."""
        self._waiting = list(reversed(tasks))
        self._total = sum(task.tensor_bytes for task in tasks)
        self._done = 0
        self._active: list[FileTask] = []
        self._jobs = jobs
        self._watcher = watcher
        self._progress = progress
        self._change = threading.Condition()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Write everything.

        Raises:
            StorageError: the system refuses; with the number of bytes that were to be written.
            InputError, FitError: see segments.
        """
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # so that a signal is seen while waiting
        except BaseException as error:
            self._stop(error)
            raise
        finally:
            for thread in threads:
                thread.join()
            for task in self._active:
                os.close(task.descriptor)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while claim := self._claim():
                self._process(*claim)
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        with self._change:
            self._error = self._error or error
            self._change.notify_all()

    def _claim(self) -> tuple[FileTask, int] | None:
        """The next piece to write; waits while too much is ahead, None when nothing is left."""
        with self._change:
            while self._error is None:
                task = self._choose()
                if task is not None:
                    task.claimed += 1
                    task.workers += 1
                    return task, task.claimed - 1
                if not self._waiting and all(task.is_claimed for task in self._active):
                    return None
                self._change.wait()
        return None

    def _choose(self) -> FileTask | None:
        """The open file with the fewest threads in it; a new one while there are spare threads."""
        limit = AHEAD * self._jobs
        ready = [t for t in self._active if not t.is_claimed and t.claimed - t.hashed < limit]
        idle = [task for task in ready if task.workers == 0]
        if not idle and self._waiting and len(self._active) < self._jobs:
            return self._open(self._waiting.pop())
        return min(ready, key=lambda task: task.workers, default=None)

    def _open(self, task: FileTask) -> FileTask:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with system_errors(task.path, "create"):
            task.descriptor = os.open(task.path, flags, 0o666)
        task.prepare()
        self._active.append(task)
        return task

    def _process(self, task: FileTask, place: int) -> None:
        segment = task.segments[place]
        with system_errors(task.path, "write", task.size):
            segment.write(task.descriptor, task.offsets[place])
        with self._change:
            task.written.add(place)
            mine = not task.is_hashing
            task.is_hashing = True
        if mine:
            self._hash(task)
        with self._change:
            task.workers -= 1
            self._change.notify_all()

    def _hash(self, task: FileTask) -> None:
        """Hash, in order, all that is written; one thread a file at a time."""
        while True:
            with self._change:
                place = task.hashed
                if place not in task.written:
                    task.is_hashing = False
                    self._finish(task)
                    return
                task.written.remove(place)
            segment = task.segments[place]
            content = self._read_back(task, task.offsets[place], segment.length)
            task.sha.update(content)
            if self._watcher is not None:
                source = segment.prove(content, self._watcher)
                if task.source is not None:
                    task.source.update(source)
            with self._change:
                task.hashed += 1
                self._done = min(self._done + segment.length, self._total)
                self._progress(self._done, self._total)
                self._change.notify_all()

    def _read_back(self, task: FileTask, offset: int, length: int) -> bytearray:
        """The piece as it lies in the file, in a buffer that the task's next piece takes over."""
        if len(task.buffer) != length:
            task.buffer = bytearray(length)
        view, done = memoryview(task.buffer), 0
        with system_errors(task.path, "read back"):
            while done < length:
                count = os.preadv(task.descriptor, [view[done:]], offset + done)
                if count == 0:
                    raise StorageError("is shorter than what was written", where=str(task.path))
                done += count
        return task.buffer

    def _finish(self, task: FileTask) -> None:
        """Close a file whose last piece is hashed; the lock is held."""
        if task.hashed == len(task.segments) and task in self._active:
            self._active.remove(task)
            with system_errors(task.path, "write", task.size):
                os.close(task.descriptor)
            task.clear()
            self._change.notify_all()
