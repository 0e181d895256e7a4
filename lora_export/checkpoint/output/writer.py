"""Writes files in one pass, with SHA-256 and size taken from the very bytes that were written.

A file that was not written whole has no digest, so nobody can claim that it was.
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


_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class HashingFile:
    """A new file that is hashed while it is written; closed and synced by `finish` only.

    needed: bytes that will be written in all, told when the disk is full. Every method raises
    StorageError when the system refuses.
    """

    def __init__(self, path: Path, needed: int) -> None:
        """Create the file, 0666 less the umask; it must not exist."""
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
        """Sync and close; `name` is how the result is to be called."""
        with system_errors(self._path, "write", self._needed):
            os.fsync(self._open_descriptor())
        self.close()
        return WrittenFile(name, self._sha.hexdigest(), self._size)

    def close(self) -> None:
        """Close without a claim that the file is whole; harmless when closed before."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with system_errors(self._path, "write", self._needed):
                os.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self._path} is closed")
        return self._descriptor


def write_bytes(path: Path, content: bytes, *, name: str | None = None) -> WrittenFile:
    """Create `path`, which must not exist, with `content`, synced; StorageError on refusal."""
    file = HashingFile(path, len(content))
    try:
        file.append(content)
        return file.finish(name or path.name)
    finally:
        file.close()


def copy_file(source: Path, target: Path, *, name: str | None = None) -> WrittenFile:
    """Copy a regular file's bytes (no mode, no times) to `target`, which must not exist.

    Raises InputError when the source is missing or shrinks meanwhile, StorageError when the
    system refuses.
    """
    with open_for_reading(source) as descriptor:
        size = os.fstat(descriptor).st_size
        file = HashingFile(target, size)
        try:
            for offset in range(0, size, CHUNK_BYTES):
                with system_errors(source, "read"):
                    piece = pread_exact(descriptor, min(CHUNK_BYTES, size - offset), offset)
                if len(piece) != min(CHUNK_BYTES, size - offset):
                    raise InputError("became shorter while it was copied", where=str(source))
                file.append(piece)
            return file.finish(name or target.name)
        finally:
            file.close()
