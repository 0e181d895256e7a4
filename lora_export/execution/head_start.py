"""Copies and hashes while torch is imported, which takes a second of one processor.

Another thread reserves room for the output, copies the untouched ranges and hashes input files.
With few adapted modules the untouched ranges are nearly everything. What it has done is not done
again. How far it comes depends on the clock; the bytes of the result do not.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.interrupts import held_back
from lora_export.checkpoint.reading import open_for_reading, system_errors
from lora_export.checkpoint.tensors import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from hashlib import _Hash as HASH
    from pathlib import Path

    from typing_extensions import Self

    from lora_export.execution.output_file import FileTask

SWITCH_SECONDS = 1e-4
"""How long, in seconds, the import may keep the interpreter while the thread waits for it.

With Python's 5 ms the thread would wait longer between two calls than the calls take.
"""


class HeadStart:
    """A thread that copies and hashes from `with` until the end of the block."""

    def __init__(self, tasks: Sequence[FileTask], files: Sequence[Path], jobs: int) -> None:
        """Prepare to copy the ranges of `tasks`, then to hash `files`, each in order.

        jobs: threads of the merge; with one there is no head start.
        """
        #: Digests so far, and of how many bytes, by file.
        self.hashed: dict[Path, tuple[HASH, int]] = {}
        self._tasks = tasks
        self._files = files
        self._is_wanted = jobs > 1 and "torch" not in sys.modules
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._interval = sys.getswitchinterval()

    def __enter__(self) -> Self:
        """Start the thread, unless torch is imported already or there may be one thread only."""
        if self._is_wanted:
            sys.setswitchinterval(SWITCH_SECONDS)
            try:
                with held_back():  # a signal may raise at the end: the thread is running then
                    self._thread.start()
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Stop the thread after its current call and wait for it.

        Raises:
            StorageError: a range could not be copied, or a file could not be read.
            InputError: a file is missing or ends early.
        """
        self._stop()
        if error is None and self._error is not None:
            raise self._error

    def _stop(self) -> None:
        with held_back():  # a thread that goes on would write into a staging that is being removed
            self._stopped.set()
            if self._is_wanted:
                self._thread.join()
                sys.setswitchinterval(self._interval)

    def _run(self) -> None:
        try:
            for task in self._tasks:
                if not self._stopped.is_set():
                    task.copy_ahead(self._stopped.is_set)
            for file in self._files:
                if not self._stopped.is_set():
                    self._hash(file)
        except BaseException as error:  # noqa: BLE001 - __exit__ raises it in the waiting thread
            self._error = error

    def _hash(self, file: Path) -> None:
        sha, offset = hashlib.sha256(), 0
        room = bytearray(CHUNK_BYTES)
        view = memoryview(room)
        with open_for_reading(file) as descriptor, system_errors(file, "read"):
            while not self._stopped.is_set():
                count = os.preadv(descriptor, [room], offset)
                sha.update(view[:count])
                offset += count
                self.hashed[file] = sha, offset
                if count == 0:
                    return


@cache
def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks of memory instead of returning them to the system.

    Every page of a new block costs a page fault, and a merge takes and frees some megabytes a
    block. glibc raises its threshold for mmap to the size of a freed block, up to 32 MiB
    (M_MMAP_THRESHOLD in mallopt(3)). Such a block is made here and freed, untouched. Once a process
    is enough: a second block would come from the memory that is kept, and be filled with zeros.
    """
    bytes(31 << 20)
