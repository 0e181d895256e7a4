"""Writes several files at once in threads; each piece is proven and hashed while it is in a cache.

A thread takes the next piece of a file, writes it, reads it back and shows it to the watcher. Then
it updates the file's digests with all pieces that are next in order; only the digests need an
order. With as many files as threads each thread has a file of its own. Threads without a file help
with other files.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.interrupts import held_back
from lora_export.checkpoint.reading import pread_into, system_errors
from lora_export.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.execution.output_file import FileTask, Lane
    from lora_export.execution.segments import Content, Watcher
    from lora_export.report.stopwatch import Advance

AHEAD = 3
"""Pieces a thread that may wait for the digests of one file; they are held in memory."""


class Pipeline:
    """Runs tasks in threads; the first error of any thread stops all of them."""

    def __init__(
        self,
        tasks: Sequence[FileTask],
        jobs: int,
        watcher: Watcher | None,
        progress: Advance,
    ) -> None:
        """Prepare to run.

        Args:
            tasks: the files to write.
            jobs: the number of threads.
            watcher: sees every piece as it was read back; None reads back only to hash.
            progress: called with the bytes done so far, and in all.
        """
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
        """Write all files.

        Raises:
            StorageError: the system refuses; a full disk is named with the bytes that are needed.
            InputError: an input is damaged, or holds NaN or infinity.
            FitError: a merged weight overflows.
        """
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        try:
            with held_back():  # a thread that has not started could not be joined
                for thread in threads:
                    thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # short waits, so that a signal is handled meanwhile
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
        except BaseException as error:  # noqa: BLE001 - run() raises it in the waiting thread
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        with self._change:
            self._error = self._error or error
            self._change.notify_all()

    def _claim(self) -> tuple[FileTask, int] | None:
        """Return the next piece to write; None when nothing is left or a thread has failed.

        Waits while as many pieces as AHEAD allows have not been hashed.
        """
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
        """Return the file whose piece comes next, or None; the lock is held.

        A new file is opened if every open file has a thread and more may be open. Otherwise it is
        the open file with the fewest threads. Threads in different files do not wait for each
        other's digests.
        """
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
        """Write a piece and prove it; return (its bytes in the output, the base's bytes).

        With a watcher the bytes are always read back from the file: the proof must see what was
        written.
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
        """Update one digest with all pieces that are next in order.

        The bytes are hashed outside the lock; `is_taken` keeps other threads from this digest.
        """
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
        """Release the pieces that every digest has taken, and close a finished file.

        The lock is held.
        """
        while task.hashed < min(lane.place for lane in task.lanes):
            del task.pieces[task.hashed]
            # Headers are no part of the total, so the sum would pass it.
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
    """Read a piece back from the file."""
    import numpy as np

    content = np.empty(length, np.uint8).data  # a bytearray would be filled with zeros first
    with system_errors(task.path, "read back"):
        if pread_into(task.descriptor, content, offset) < length:
            message = "is shorter than what was written: another process has changed it"
            raise StorageError(message, where=str(task.path), cause="storage/changed")
    return content
