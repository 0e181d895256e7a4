"""Reads the zip format of torch.save (torch 1.6 and later): where each storage's bytes lie."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import (
    COPY_AGAIN,
    ZIP_START,
    open_for_reading,
    pread_exact,
    reading,
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

_UNREAD = 1 | 1 << 5 | 1 << 6 | 1 << 13
"""The bits in an entry's flags that torch's reader (miniz) refuses: encryption and patches."""

_UTF8 = 1 << 11
"""The bit in an entry's flags that marks its name as UTF-8."""

_AGAIN = "load the checkpoint where it was made and torch.save it again"
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class _Record:
    """A record at an archive's end, of which a field or two are wanted."""

    start: bytes
    """The signature."""
    layout: struct.Struct
    fields: slice
    """The places of the wanted fields in the layout."""

    def read(self, content: bytes) -> tuple[int, int]:
        """Return the first and the last wanted field; -1 where `content` is no whole record."""
        whole = content[: self.layout.size]
        if len(whole) != self.layout.size or not whole.startswith(self.start):
            return -1, -1
        wanted = self.layout.unpack(whole)[self.fields]
        return int(wanted[0]), int(wanted[-1])


_END = _Record(b"PK\x05\x06", struct.Struct("<4sHHHHIIH"), slice(5, 7))
"""Of its fields the size and the offset of the directory are wanted."""
_LOCATOR = _Record(b"PK\x06\x07", struct.Struct("<4sIQI"), slice(2, 3))
"""Of its fields the offset of the record _END_64 is wanted."""
_END_64 = _Record(b"PK\x06\x06", struct.Struct("<4sQHHIIQQQQ"), slice(8, 10))
"""As _END, in archives of more than 4 GB."""

DIRECTORY_BYTES = 2_000_000
"""Bytes of a directory that need no explanation by the archive's size: 25,000 entries."""

DIRECTORY_SHARE = 16
"""What part of the other bytes a directory may take further. An entry takes 80 bytes in it."""

_ONE_READ = 1 << 20
"""Bytes that are read at a time for a checksum."""


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
        # torch.serialization.set_crc32_options(False) leaves 0 in the place of every checksum.
        self._has_sums = any(info.CRC for info in self._entries.values())
        self._prefix = self._find_prefix()

    def _list_entries(self) -> dict[str, zipfile.ZipInfo]:
        size, offset = self._directory()
        self._bound_directory(size)
        try:
            # A copy: closing `file` must not close the descriptor of open_for_reading.
            with (
                os.fdopen(os.dup(self._descriptor), "rb") as file,
                zipfile.ZipFile(file) as archive,
            ):
                listed, start = archive.infolist(), archive.start_dir
        except _BROKEN as error:
            if size < 0:  # an archive begins as one, and ends with its directory
                raise InputError(
                    f"cut short: a zip archive without its end, of {self._size:,} bytes",
                    where=str(self._path),
                    hint=COPY_AGAIN,
                    cause="input/truncated",
                ) from error
            raise self._damaged(
                f"a zip archive that is damaged or cut short: {reason_of(error)}"
            ) from error
        self._refuse_ambiguous(listed, is_alone=start == offset)
        return {info.filename: info for info in listed}

    def _bound_directory(self, size: int) -> None:
        """Refuse a directory that is too long for the archive; Python's reader parses all of it."""
        most = DIRECTORY_BYTES + self._size // DIRECTORY_SHARE
        if size > most:
            raise LimitError(
                f"a zip archive whose directory takes {size:,} bytes; at most {most:,} are read",
                where=str(self._path),
                hint=_AGAIN,
                cause="limit/size",
            )

    def _refuse_ambiguous(self, listed: list[zipfile.ZipInfo], *, is_alone: bool) -> None:
        """Refuse an archive that readers, torch's among them, understand differently.

        is_alone: whether Python's reader found the directory where the archive's own records place
        it. That reader corrects a wrong offset; torch does not.
        """
        # torch's reader (miniz) finds entries by name without regard to case.
        if len({info.filename.lower() for info in listed}) != len(listed):
            fault = "an archive with two entries of one name, upper and lower case being one"
        elif not is_alone:
            fault = "two archives in one file, or one behind other bytes"
        elif any(info.volume or info.flag_bits & _UNREAD for info in listed):
            fault = "an archive on several disks, or with entries that are encrypted or patches"
        else:
            return
        raise InputError(
            f"{fault}: its readers differ about what it holds",
            where=str(self._path),
            hint=_AGAIN,
            cause="input/torch-file",
        )

    def _directory(self) -> tuple[int, int]:
        """Return size and offset of the directory by the archive's own records; -1 without any."""
        length = min(self._size, _MAX_END_BYTES)
        tail = pread_exact(self._descriptor, length, self._size - length)
        at = tail.rfind(_END.start)
        locator = tail[max(at - _LOCATOR.layout.size, 0) : max(at, 0)]
        if not locator.startswith(_LOCATOR.start):
            return _END.read(tail[max(at, 0) :])
        place, _ = _LOCATOR.read(locator)
        if not 0 <= place <= self._size:
            return -1, -1
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
        self._refuse_unlike_torch(prefix)
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

    def _refuse_unlike_torch(self, prefix: str) -> None:
        """Refuse what torch's own reader refuses: its entries lie in one folder, with a version."""
        is_one_folder = bool(prefix) and all(name.startswith(prefix) for name in self._entries)
        has_version = {f"{prefix}version", f"{prefix}.data/version"} & self._entries.keys()
        if not is_one_folder or not has_version:
            raise InputError(
                "a zip archive, but none of torch.save: its entries do not lie in one folder, "
                "or without the entry 'version'",
                where=str(self._path),
                hint=_AGAIN,
                cause="input/torch-file",
            )

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
        self._check_sum(f"{self._prefix}data.pkl", offset, size)
        storages = StorageTable(facts=5)
        named = Named()
        # A copy: closing `file` must not close the descriptor of open_for_reading.
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(offset)
            reader = BoundedReader(file, MAX_PICKLE_BYTES, str(self._path), rest=size)
            root = read_pickle(
                reader, BUILDERS, storages.add, str(self._path), named, file_size=self._size
            )
        return TorchObject(root, {key: self._storage(key) for key in storages.by_key}, named)

    def _check_byte_order(self) -> None:
        name = f"{self._prefix}byteorder"
        if name not in self._entries:
            return
        offset, size = self._place(name)
        self._check_sum(name, offset, size)
        order = pread_exact(self._descriptor, min(size, 16), offset)
        if order != b"little":
            raise InputError(
                f"its byte order is {order!r}, not b'little'",
                where=str(self._path),
                cause="input/torch-file",
            )

    def check_sums(self) -> None:
        """Compare every entry of the archive with its CRC-32; all its bytes are read.

        Raises:
            InputError: an entry has changed since it was written, or cannot be found.
        """
        for name in self._entries:
            if not name.endswith("/"):
                self._check_sum(name, *self._place(name))

    def _check_sum(self, name: str, offset: int, size: int) -> None:
        if not self._has_sums:
            return
        crc, end = 0, offset + size
        while offset < end:
            part = pread_exact(self._descriptor, min(_ONE_READ, end - offset), offset)
            if not part:
                break
            crc = zlib.crc32(part, crc)
            offset += len(part)
        if crc != self._entries[name].CRC or offset != end:
            raise self._damaged(
                f"the archive's entry {name!r} has changed since it was written: its CRC-32 is "
                f"{crc:08x}, not {self._entries[name].CRC:08x}"
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
        here = pread_exact(self._descriptor, name_length, at + _LOCAL_HEADER.size)
        if here != info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437"):
            raise self._damaged(f"the archive's entry {name!r} bears another name at its place")
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
    with open_for_reading(path) as descriptor, reading(path):
        return TorchZip(path, descriptor).read_object()


def check_sums(path: Path) -> None:
    """Compare all bytes of the file `path` with their checksums, where it has any.

    Only the zip format of torch.save has checksums, and torch.load does not check them.

    Raises:
        InputError: bytes have changed since they were written.
        StorageError: the file cannot be read.
    """
    with open_for_reading(path) as descriptor, reading(path):
        if pread_exact(descriptor, len(ZIP_START), 0) == ZIP_START:
            TorchZip(path, descriptor).check_sums()
