"""What takes the place of a pickle's classes and objects, and the bounded file it is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import LimitError

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_PICKLE_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names; never imported."""

    name: str


@dataclass(slots=True, eq=False)
class Opaque:
    """An object of a class unknown to us: `name` is the class, `state` what it was given.

    tensor_like: it stands where the file's author had a tensor (quantised, sparse, a subclass).
    """

    name: str
    state: object = None
    tensor_like: bool = False


@dataclass(slots=True)
class BoundedReader:
    """A binary file of which at most `budget` more bytes may be read; `where` names it."""

    file: BinaryIO
    budget: int
    where: str

    def _spend(self, part: bytes) -> bytes:
        self.budget -= len(part)
        return part

    def read(self, length: int) -> bytes:
        """`length` bytes, fewer at the end of the file; LimitError beyond the budget."""
        if length > self.budget:
            raise LimitError(
                f"its pickle asks for more than {MAX_PICKLE_BYTES:,} bytes",
                where=self.where,
            )
        return self._spend(self.file.read(length))

    def readline(self) -> bytes:
        """The bytes up to a line end, or the budget's end."""
        return self._spend(self.file.readline(self.budget))
