"""Reads the zip format of torch.save (torch 1.6 and later): where each storage's bytes lie."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import (
    COPY_AGAIN,
    ZIP_START,
    open_for_reading,
    pread_exact,
    system_errors,
)
from lora_export.checkpoint.torch_save.callables import Named
from lora_export.checkpoint.torch_save.inert import MAX_PICKLE_BYTES, BoundedReader
from lora_export.checkpoint.torch_save.opcodes import read_pickle
from lora_export.checkpoint.torch_save.torch_rebuild import BUILDERS
from lora_export.checkpoint.torch_save.torch_values import Place, StorageTable, TorchObject
from lora_export.errors import InputError, LimitError
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from pathlib import Path

_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
"""The header before an entry's bytes; its last two fields are the lengths of name and extra."""

_MAX_END_BYTES = 22 + 0xFFFF
"""The record at the end of an archive, and the longest comment behind it."""

_ENCRYPTED = 1
"""The bit in an entry's flags that marks it as encrypted."""

_AGAIN = "load the checkpoint where it was made and torch.save it again"
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class _Record:
    """A record at an archive's end, of which one field is wanted."""

    start: bytes
    """The signature."""
    layout: struct.Struct
    field: int
    """The number of the wanted field in the layout."""

    def read(self, content: bytes) -> int:
        """Return the wanted field; -1 where `content` is no such record or is cut short."""
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
        """Read the archive's directory.

        Raises:
            InputError: the archive is damaged, ambiguous or none of torch.save.
        """
        self._path = path
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._entries = self._list_entries()
        self._prefix = self._find_prefix()

    def _list_entries(self) -> dict[str, zipfile.ZipInfo]:
        try:
            # A copy: closing `file` must not close the descriptor of open_for_reading.
            with (
                os.fdopen(os.dup(self._descriptor), "rb") as file,
                zipfile.ZipFile(file) as archive,
            ):
                listed, start = archive.infolist(), archive.start_dir
        except _BROKEN as error:
            raise self._damaged(
                f"a zip archive that is damaged or cut short: {reason_of(error)}"
            ) from error
        self._refuse_ambiguous(listed, start)
        return {info.filename: info for info in listed}

    def _refuse_ambiguous(self, listed: list[zipfile.ZipInfo], start: int) -> None:
        """Refuse an archive that readers, torch's among them, understand differently.

        start: where Python's reader found the directory. It corrects a wrong offset; torch does
        not.
        """
        # torch's reader (miniz) finds entries by name without regard to case.
        if len({info.filename.lower() for info in listed}) != len(listed):
            fault = "an archive with two entries of one name, upper and lower case being one"
        elif start != self._directory_offset():
            fault = "two archives in one file, or one behind other bytes"
        else:
            return
        raise InputError(
            f"{fault}: its readers differ about what it holds",
            where=str(self._path),
            hint=_AGAIN,
            cause="input/torch-file",
        )

    def _directory_offset(self) -> int:
        """Return where the archive's own records place its directory; -1 when they do not."""
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
                cause="input/no-weights",
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
                cause="input/no-weights",
            )
        return prefix

    def read_object(self) -> TorchObject:
        """Read the pickled object, inert, and the place of every storage that it names.

        A storage that cannot be found gets a fault instead of a place, as no tensor may need it.

        Raises:
            InputError: the archive is damaged or of another byte order.
            LimitError: the pickle is too big.
        """
        self._check_byte_order()
        offset, size = self._place(f"{self._prefix}data.pkl")
        if size > MAX_PICKLE_BYTES:
            raise LimitError(
                f"a pickle of {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read",
                where=str(self._path),
                cause="limit/size",
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
            raise InputError(
                f"its byte order is {order!r}, not b'little'",
                where=str(self._path),
                cause="input/torch-file",
            )

    def _storage(self, key: str) -> Place:
        try:
            return Place(*self._place(f"{self._prefix}data/{key}"))
        except InputError as error:
            return Place(0, 0, error.problems[0])

    def _place(self, name: str) -> tuple[int, int]:
        """Return offset and size of an entry's bytes.

        The local header decides where the bytes begin. Its extra field may be longer than the one
        in the directory: torch pads it so that every storage begins at a multiple of 64.
        """
        info = self._entries.get(name)
        if info is None:
            raise self._damaged(f"the archive has no entry {name!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise InputError(
                f"the archive's entry {name!r} is compressed or encrypted",
                where=str(self._path),
                hint=f"torch.save does neither: {_AGAIN}",
                cause="input/torch-file",
            )
        # An offset beyond the file reads nothing, which is reported as any other wrong place.
        at = info.header_offset if 0 <= info.header_offset <= self._size else self._size
        header = pread_exact(self._descriptor, _LOCAL_HEADER.size, at)
        if len(header) != _LOCAL_HEADER.size or not header.startswith(ZIP_START):
            raise self._damaged(f"the archive's entry {name!r} is not at its directory's place")
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        offset = at + _LOCAL_HEADER.size + name_length + extra_length
        if info.compress_size != info.file_size or offset + info.file_size > self._size:
            raise self._damaged(f"the archive's entry {name!r} reaches beyond the end of the file")
        return offset, info.file_size

    def _damaged(self, message: str) -> InputError:
        return InputError(message, where=str(self._path), hint=COPY_AGAIN, cause="input/torch-file")


def read_torch_zip(path: Path) -> TorchObject:
    """Read what torch.save put in the archive `path`.

    Reproduces torch.serialization._load of torch 2.13.

    Raises:
        InputError: the archive is damaged, ambiguous or of another kind.
        LimitError: its pickle is too big.
        StorageError: the file cannot be read.
    """
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        return TorchZip(path, descriptor).read_object()
