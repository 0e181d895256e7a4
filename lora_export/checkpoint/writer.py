"""Writes files in one pass, with SHA-256 and size taken from the very bytes that were written.

A shard that was not written whole and in order has no digest, so nobody can claim that it was.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from lora_export.checkpoint.files import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.header import encode_header
from lora_export.checkpoint.tensors import CHUNK_BYTES, iter_chunks
from lora_export.errors import InputError, LoraExportError
from lora_export.records import WrittenFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from lora_export.records import TensorRef, TensorSpec

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


class ShardWriter:
    """Streams one safetensors file: the header at once, then each tensor, in the order of specs.

    Use as a context manager. `written` holds digest and size once the block has ended without an
    exception; a block that ends with tensors missing raises. name: what `written.path` is, by
    default the file's name.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        *,
        name: str | None = None,
    ) -> None:
        """Raise InputError for specs that no reader would take; nothing is created before."""
        self._path = path
        self._name = name or path.name
        self._header = encode_header(specs, metadata)
        self._waiting = list(reversed(specs))
        self._needed = len(self._header) + sum(spec.nbytes for spec in specs)
        self._file: HashingFile | None = None
        self.written: WrittenFile | None = None

    def __enter__(self) -> Self:
        """Create the file, which must not exist, and write the header; StorageError."""
        self._file = HashingFile(self._path, self._needed)
        self._file.append(self._header)
        return self

    def write(self, name: str, content: bytes | bytearray | memoryview) -> None:
        """Write the whole tensor `name`, the next in order, given its bytes."""
        self.write_parts(name, (content,))

    def copy(self, ref: TensorRef, name: str | None = None) -> None:
        """Write the bytes of `ref` as the next tensor, in row-major order, chunk by chunk."""
        self.write_parts(name or ref.spec.name, iter_chunks(ref, CHUNK_BYTES))

    def write_parts(self, name: str, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write the tensor `name`, the next in order, from pieces that follow each other.

        Raises LoraExportError (a fault of the caller) for another tensor than the next, or when
        the pieces are not as long as its spec says; StorageError when the system refuses.
        """
        if self._file is None:
            raise self._misused(f"{name!r} is written outside the writer's block")
        if not self._waiting or self._waiting[-1].name != name:
            due = repr(self._waiting[-1].name) if self._waiting else "nothing"
            raise self._misused(f"{name!r} is written where {due} is due")
        rest = self._waiting.pop().nbytes
        for part in parts:
            rest -= memoryview(part).nbytes
            if rest < 0:
                break
            self._file.append(part)
        if rest:
            raise self._misused(f"{name!r} is written {'long' if rest < 0 else 'short'}")

    def _misused(self, message: str) -> LoraExportError:
        return LoraExportError(message, where=str(self._path))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Sync and close; after an exception or with tensors missing there is no `written`."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            if kind is None and self._waiting:
                raise self._misused(f"{self._waiting[-1].name!r} was never written")
            if kind is None:
                self.written = file.finish(self._name)
        finally:
            file.close()


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
