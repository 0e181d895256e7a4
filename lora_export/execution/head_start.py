"""What needs no torch is done while torch is imported, which takes a second of one processor.

Another thread gets room for the output, copies the untouched ranges, which for few adapted modules
is nearly everything, and hashes input files. What it has done is not done again; where it stops
depends on the clock, the bytes of the result do not.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import open_for_reading, system_errors
from lora_export.checkpoint.tensors import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from hashlib import _Hash as HASH
    from pathlib import Path

    from typing_extensions import Self

    from lora_export.execution.output_file import FileTask

SWITCH_SECONDS = 1e-4
"""How long the import may keep the interpreter from a thread that wants to start its next call.

With Python's 5 ms the thread would wait longer between two calls than the calls take.
"""


class HeadStart:
    """Copies and hashes in a thread from `with` until the end of the block.

    hashed: digests so far, and of how many bytes, by file.
    """

    def __init__(self, tasks: Sequence[FileTask], files: Sequence[Path], jobs: int) -> None:
        """First the ranges of `tasks`, then the bytes of `files`, each in order."""
        self.hashed: dict[Path, tuple[HASH, int]] = {}
        self._tasks = tasks
        self._files = files
        self._is_wanted = jobs > 1 and "torch" not in sys.modules
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._interval = sys.getswitchinterval()

    def __enter__(self) -> Self:
        """Start, unless torch is there already, or one thread is to do everything."""
        if self._is_wanted:
            sys.setswitchinterval(SWITCH_SECONDS)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Stop, soon.

        Raises:
            StorageError, InputError: a range could not be copied, or a file not be read.
        """
        self._stopped.set()
        if self._is_wanted:
            self._thread.join()
            sys.setswitchinterval(self._interval)
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for task in self._tasks:
                if not self._stopped.is_set():
                    task.copy_ahead(self._stopped.is_set)
            for file in self._files:
                if not self._stopped.is_set():
                    self._hash(file)
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits
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


def keep_freed_memory() -> None:
    """Let glibc give freed blocks out again, and not hand them to the system and ask for new ones.

    Every page of a new block is a fault, and a merge takes and frees some megabytes a block. glibc
    learns what a program frees: this is a block as large as it will learn from, never touched.
    """
    bytes(31 << 20)
