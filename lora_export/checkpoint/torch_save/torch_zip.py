"""The zip format of torch.save (torch >= 1.6): where in the file each storage's bytes lie."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.torch_save.callables import Named
from lora_export.checkpoint.torch_save.inert import MAX_PICKLE_BYTES, BoundedReader
from lora_export.checkpoint.torch_save.opcodes import read_pickle
from lora_export.checkpoint.torch_save.torch_rebuild import BUILDERS
from lora_export.checkpoint.torch_save.torch_values import Place, StorageTable, TorchObject
from lora_export.errors import InputError, LimitError

if TYPE_CHECKING:
    from pathlib import Path

ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_MAX_END_BYTES = 22 + 0xFFFF
_ENCRYPTED = 1
_AGAIN = "load the checkpoint where it was made and torch.save it again"
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class _Record:
    """A record at an archive's end: its signature, its layout, and the field that is wanted."""

    start: bytes
    layout: struct.Struct
    field: int

    def read(self, content: bytes) -> int:
        """The wanted field; -1 where the record does not stand or is cut short."""
        whole = content[: self.layout.size]
        if len(whole) != self.layout.size or not whole.startswith(self.start):
            return -1
        return int(self.layout.unpack(whole)[self.field])


_END = _Record(b"PK\x05\x06", struct.Struct("<4sHHHHIIH"), 6)
_LOCATOR = _Record(b"PK\x06\x07", struct.Struct("<4sIQI"), 2)
_END_64 = _Record(b"PK\x06\x06", struct.Struct("<4sQHHIIQQQQ"), 9)


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
                listed, start = archive.infolist(), archive.start_dir
        except _BROKEN as error:
            raise self._damaged(f"a zip archive that is damaged or cut short: {error}") from error
        self._refuse_ambiguous(listed, start)
        return {info.filename: info for info in listed}

    def _refuse_ambiguous(self, listed: list[zipfile.ZipInfo], start: int) -> None:
        """Refuse what readers of zip archives, torch's among them, read differently.

        start: where Python's reader found the directory. It mends a wrong offset, torch does not.
        """
        if len({info.filename.lower() for info in listed}) != len(listed):
            fault = "an archive with two entries of one name, upper and lower case being one"
        elif start != self._directory_offset():
            fault = "two archives in one file, or one behind other bytes"
        else:
            return
        raise InputError(
            f"{fault}: its readers differ about what it holds", where=str(self._path), hint=_AGAIN
        )

    def _directory_offset(self) -> int:
        """Where the archive itself says that its directory begins; -1 when it does not."""
        length = min(self._size, _MAX_END_BYTES)
        tail = pread_exact(self._descriptor, length, self._size - length)
        at = tail.rfind(_END.start)
        locator = tail[max(at - _LOCATOR.layout.size, 0) : max(at, 0)]
        if not locator.startswith(_LOCATOR.start):
            return _END.read(tail[max(at, 0) :])
        place = _LOCATOR.read(locator)
        if not 0 <= place <= self._size:
            return -1
        return _END_64.read(pread_exact(self._descriptor, _END_64.layout.size, place))

    def _find_prefix(self) -> str:
        pickles = [name for name in self._entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            count = len(pickles) or "no"
            raise InputError(
                f"a zip archive, but none of torch.save: it has {count} data.pkl",
                where=str(self._path),
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
        named = Named()
        root = read_pickle(reader, BUILDERS, storages.add, str(self._path), named)
        return TorchObject(root, {key: self._storage(key) for key in storages.by_key}, named)

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
                hint=f"torch.save does neither: {_AGAIN}",
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
