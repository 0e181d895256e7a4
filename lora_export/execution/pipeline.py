"""Writes several files at once in threads, each piece proven and hashed while it is hot.

A thread takes the next piece of a file, writes it, reads it back, shows it to the watcher, and then
carries the file's digests on over whatever is next in order. Only the digests need an order. With
as many files as threads each thread has a file of its own; threads without one help with the
others' pieces.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import pread_into, system_errors
from lora_export.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.execution.output_file import FileTask, Lane
    from lora_export.execution.segments import Content, Watcher

AHEAD = 3
"""Pieces of one file that may be made before the oldest of them has been hashed, a thread."""


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
            InputError, FitError: see rows.
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
            task = self._waiting.pop()
            task.open()
            task.prepare()
            self._active.append(task)
            return task
        return min(ready, key=lambda task: task.workers, default=None)

    def _process(self, task: FileTask, place: int) -> None:
        piece = self._make(task, place)
        with self._change:
            task.pieces[place] = piece
        for number, lane in enumerate(task.lanes):
            self._hash(task, number, lane)
        with self._change:
            task.workers -= 1
            self._change.notify_all()

    def _make(self, task: FileTask, place: int) -> tuple[Content, Content]:
        """Write a piece and prove it: (its bytes in the output, those of the base it was made of).

        What is watched is read back from the file, whoever wrote it.
        """
        segment, offset = task.segments[place], task.offsets[place]
        made: Content | None = None
        if not task.is_copied(place):
            with system_errors(task.path, "write", task.size):
                made = segment.write(task.descriptor, offset)
        if self._watcher is None:
            return made or _read_back(task, offset, segment.length), b""
        written = _read_back(task, offset, segment.length)
        return written, segment.prove(written, self._watcher)

    def _hash(self, task: FileTask, number: int, lane: Lane) -> None:
        """Carry one digest on over all that is next in order; one thread a digest at a time."""
        while True:
            with self._change:
                piece = task.pieces.get(lane.place)
                if piece is None or lane.is_taken:
                    return
                lane.is_taken = True
            lane.update(piece[number])
            with self._change:
                lane.is_taken = False
                lane.place += 1
                self._advance(task)

    def _advance(self, task: FileTask) -> None:
        """Let go of what every digest has passed; the lock is held."""
        while task.hashed < min(lane.place for lane in task.lanes):
            del task.pieces[task.hashed]
            self._done = min(self._done + task.segments[task.hashed].length, self._total)
            task.hashed += 1
            self._progress(self._done, self._total)
            self._change.notify_all()
        if task.hashed == len(task.segments) and task in self._active:
            self._active.remove(task)
            task.close()
            task.clear()
            self._change.notify_all()


def _read_back(task: FileTask, offset: int, length: int) -> memoryview:
    """The piece as it lies in the file."""
    import numpy as np

    content = np.empty(length, np.uint8).data  # a bytearray would be filled with zeros first
    with system_errors(task.path, "read back"):
        if pread_into(task.descriptor, content, offset) < length:
            raise StorageError("is shorter than what was written", where=str(task.path))
    return content
