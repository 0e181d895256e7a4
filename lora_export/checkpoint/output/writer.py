"""Writes small files in one pass, and takes SHA-256 and size from the bytes that are written.

A file that was not written whole gets no digest, so no manifest can list it.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.tensors import CHUNK_BYTES
from lora_export.errors import InputError
from lora_export.records import WrittenFile

if TYPE_CHECKING:
    from pathlib import Path


# O_EXCL: the staging is empty, so an existing file would be one that is written twice.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class HashingFile:
    """A new file that is hashed while it is written.

    Every method raises StorageError when the system refuses.
    """

    def __init__(self, path: Path, needed: int) -> None:
        """Create the file with mode 0666 less the umask; it must not exist.

        needed: bytes that will be written in all; the message names them when the disk is full.
        """
        self._path = path
        self._needed = needed
        self._sha = hashlib.sha256()
        self._size = 0
        with system_errors(path, "create"):
            self._descriptor: int | None = os.open(path, _CREATE, 0o666)

    def append(self, content: bytes | bytearray | memoryview) -> None:
        """Write all bytes of a contiguous buffer at the end."""
        rest = memoryview(content)
        if not rest.nbytes:
            return
        rest = rest.cast("B")
        self._sha.update(rest)
        self._size += len(rest)
        with system_errors(self._path, "write", self._needed):
            while rest:
                rest = rest[os.write(self._open_descriptor(), rest) :]

    def finish(self, name: str) -> WrittenFile:
        """Sync and close the file; return its digest and size under `name`."""
        with system_errors(self._path, "write", self._needed):
            os.fsync(self._open_descriptor())
        self.close()
        return WrittenFile(name, self._sha.hexdigest(), self._size)

    def close(self) -> None:
        """Close the file without a result; do nothing when it is closed already."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with system_errors(self._path, "write", self._needed):
                os.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self._path} is closed")
        return self._descriptor


def write_bytes(path: Path, content: bytes, *, name: str | None = None) -> WrittenFile:
    """Write `content` to the new file `path` and sync it; `name` is the result's, or the file's.

    Raises:
        StorageError: the file exists, or the system refuses.
    """
    file = HashingFile(path, len(content))
    try:
        file.append(content)
        return file.finish(name or path.name)
    finally:
        file.close()


def copy_file(source: Path, target: Path, *, name: str | None = None) -> WrittenFile:
    """Copy the bytes of a regular file, without mode and times, to the new file `target`.

    Raises:
        InputError: the source is missing, or became shorter meanwhile.
        StorageError: the target exists, or the system refuses.
    """
    with open_for_reading(source) as descriptor:
        size = os.fstat(descriptor).st_size
        file = HashingFile(target, size)
        try:
            for offset in range(0, size, CHUNK_BYTES):
                with system_errors(source, "read"):
                    piece = pread_exact(descriptor, min(CHUNK_BYTES, size - offset), offset)
                if len(piece) != min(CHUNK_BYTES, size - offset):
                    raise InputError(
                        "became shorter while it was copied",
                        where=str(source),
                        cause="input/changed",
                    )
                file.append(piece)
            return file.finish(name or target.name)
        finally:
            file.close()
