"""Reads the format of torch.save before torch 1.6: a row of pickles, then the raw storages."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import COPY_AGAIN, open_for_reading, reading
from lora_export.checkpoint.torch_save.callables import Named
from lora_export.checkpoint.torch_save.inert import MAX_PICKLE_BYTES, BoundedReader
from lora_export.checkpoint.torch_save.opcodes import read_pickle
from lora_export.checkpoint.torch_save.torch_rebuild import BUILDERS
from lora_export.checkpoint.torch_save.torch_values import Place, StorageTable, TorchObject
from lora_export.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_MAGIC = 0x1950A86A20F9469CFC6C
"""torch.serialization.MAGIC_NUMBER, the first pickle of such a file."""

_PROTOCOL = 1001
"""torch.serialization.PROTOCOL_VERSION, the second pickle."""

_COUNT_BYTES = 8
"""Bytes of the count of elements before each storage, little-endian."""


def read_torch_legacy(path: Path) -> TorchObject:
    """Read what torch.save put in `path` in its format before torch 1.6.

    Reproduces torch.serialization._legacy_load of torch 2.13.

    Raises:
        InputError: the file is damaged or of another kind.
        LimitError: a pickle in it is too big.
        StorageError: the file cannot be read.
    """
    with open_for_reading(path) as descriptor, reading(path):
        size = os.fstat(descriptor).st_size
        # A copy: closing `file` must not close the descriptor of open_for_reading.
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return _LegacyFile(path, file, size).read_object()


@dataclass(slots=True)
class _LegacyFile:
    """An open file in this format; its parts are read in their order."""

    path: Path
    file: BinaryIO
    size: int
    storages: StorageTable = field(default_factory=lambda: StorageTable(facts=6))
    named: Named = field(default_factory=Named)

    def read_object(self) -> TorchObject:
        self._check_start()
        root = self._pickle()
        keys = self._pickle()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise self._damaged("its list of storages is broken")
        return TorchObject(root, self._places(keys), self.named)

    def _check_start(self) -> None:
        if self._pickle() != _MAGIC:
            raise InputError(
                "a pickle, but none of torch.save",
                where=str(self.path),
                hint="save a state dict with torch.save or safetensors",
                cause="input/no-weights",
            )
        protocol, system = self._pickle(), self._pickle()
        little = isinstance(system, dict) and system.get("little_endian") is True
        if protocol != _PROTOCOL or not little:
            raise InputError(
                "unknown torch.save protocol or byte order",
                where=str(self.path),
                cause="input/torch-file",
            )

    def _pickle(self) -> object:
        reader = BoundedReader(self.file, MAX_PICKLE_BYTES, str(self.path))
        return read_pickle(
            reader,
            BUILDERS,
            self.storages.add,
            str(self.path),
            self.named,
            file_size=self.size,
        )

    def _places(self, keys: list[str]) -> dict[str, Place]:
        """Return where each storage lies. They follow one another in the order of `keys`."""
        places = {}
        position = self.file.tell()
        for key in keys:
            storage = self.storages.by_key.get(key)
            self.file.seek(position)
            count = int.from_bytes(self.file.read(_COUNT_BYTES), "little")
            position += _COUNT_BYTES
            if storage is None or count != storage.numel:
                raise self._damaged(f"its storage {key[:40]!r} is not as its pickle describes it")
            places[key] = Place(position, storage.nbytes)
            position += storage.nbytes
            if position > self.size:
                raise InputError(
                    f"cut short: its storages need {position:,} bytes or more, the file has"
                    f" {self.size:,}",
                    where=str(self.path),
                    hint=COPY_AGAIN,
                    cause="input/truncated",
                )
        return places

    def _damaged(self, message: str) -> InputError:
        return InputError(message, where=str(self.path), hint=COPY_AGAIN, cause="input/torch-file")
