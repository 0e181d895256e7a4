"""The zip format of torch.save (torch >= 1.6): where in the file each storage's bytes lie."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from typing import TYPE_CHECKING

from lora_export.checkpoint.files import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.inert import MAX_PICKLE_BYTES, BoundedReader
from lora_export.checkpoint.opcodes import read_pickle
from lora_export.checkpoint.torch_values import BUILDERS, Place, StorageTable, TorchObject
from lora_export.errors import InputError, LimitError

if TYPE_CHECKING:
    from pathlib import Path

ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 1
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


class TorchZip:
    """An open archive of torch.save."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Raise InputError for an archive that is damaged or of another kind."""
        self._path = path
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._entries = self._list_entries()
        self._prefix = self._find_prefix()

    def _list_entries(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with (
                os.fdopen(os.dup(self._descriptor), "rb") as file,
                zipfile.ZipFile(file) as archive,
            ):
                listed = archive.infolist()
        except _BROKEN as error:
            raise self._damaged(f"a zip archive that is damaged or cut short: {error}") from error
        entries = {info.filename: info for info in listed}
        if len(entries) != len(listed):
            raise InputError("an archive with two entries of one name", where=str(self._path))
        return entries

    def _find_prefix(self) -> str:
        pickles = [name for name in self._entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise InputError(
                "a zip archive, but none of torch.save: it has no data.pkl", where=str(self._path)
            )
        prefix = pickles[0].removesuffix("data.pkl")
        if any(
            name == f"{prefix}constants.pkl" or name.startswith(f"{prefix}code/")
            for name in self._entries
        ):
            raise InputError(
                "a TorchScript program, not a state dict",
                where=str(self._path),
                hint="torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
            )
        return prefix

    def read_object(self) -> TorchObject:
        """The pickled object, inert, and the place of every storage that it names.

        A storage that cannot be placed has no place but a fault: it may not be needed.
        """
        self._check_byte_order()
        offset, size = self._place(f"{self._prefix}data.pkl")
        if size > MAX_PICKLE_BYTES:
            raise LimitError(
                f"a pickle of {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read",
                where=str(self._path),
            )
        content = io.BytesIO(pread_exact(self._descriptor, size, offset))
        storages = StorageTable()
        reader = BoundedReader(content, MAX_PICKLE_BYTES, str(self._path))
        root = read_pickle(reader, BUILDERS, storages.add, str(self._path))
        return TorchObject(root, {key: self._storage(key) for key in storages.by_key})

    def _check_byte_order(self) -> None:
        name = f"{self._prefix}byteorder"
        if name not in self._entries:
            return
        offset, size = self._place(name)
        order = pread_exact(self._descriptor, min(size, 16), offset)
        if order != b"little":
            raise InputError(f"its byte order is {order!r}, not b'little'", where=str(self._path))

    def _storage(self, key: str) -> Place:
        try:
            return Place(*self._place(f"{self._prefix}data/{key}"))
        except InputError as error:
            return Place(0, 0, error.problems[0])

    def _place(self, name: str) -> tuple[int, int]:
        """Offset and size of an entry's bytes; the local header decides where they begin."""
        info = self._entries.get(name)
        if info is None:
            raise self._damaged(f"the archive has no entry {name!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise InputError(
                f"the archive's entry {name!r} is compressed or encrypted",
                where=str(self._path),
                hint="torch.save does neither: load the checkpoint and torch.save it again",
            )
        at = info.header_offset if 0 <= info.header_offset <= self._size else self._size
        header = pread_exact(self._descriptor, _LOCAL_HEADER.size, at)
        if len(header) != _LOCAL_HEADER.size or not header.startswith(ZIP_START):
            raise self._damaged(f"the archive's entry {name!r} is not where its directory says")
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        offset = at + _LOCAL_HEADER.size + name_length + extra_length
        if info.compress_size != info.file_size or offset + info.file_size > self._size:
            raise self._damaged(f"the archive's entry {name!r} reaches beyond the end of the file")
        return offset, info.file_size

    def _damaged(self, message: str) -> InputError:
        return InputError(message, where=str(self._path), hint="copy or download the file again")


def read_torch_zip(path: Path) -> TorchObject:
    """What torch.save put in the archive `path`; InputError, LimitError, StorageError."""
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        return TorchZip(path, descriptor).read_object()
