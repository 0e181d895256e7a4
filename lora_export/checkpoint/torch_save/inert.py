"""What takes the place of a pickle's classes and objects, and the bounded file it is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import LimitError

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_PICKLE_BYTES = 100_000_000
_KEY_TYPES = (str, int, float, bytes, type(None))


class PickleError(Exception):
    """A pickle that is complete, but must not be read; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names; never imported."""

    name: str


@dataclass(slots=True, eq=False)
class Opaque:
    """An object of a class unknown to us: `name` is the class, `state` what it was given.

    tensor_like: it stands where the file's author had a tensor (quantised, sparse, a subclass).
    hint: what the author can save instead, if that is known.
    """

    name: str
    state: object = None
    tensor_like: bool = False
    hint: str = ""


class Built(dict[object, object]):
    """A dictionary that a class made (OrderedDict): unlike a plain one, it can have attributes."""

    __slots__ = ()


def mapping_key(value: object) -> object:
    """A key of a dict: hashing a tuple may take for ever, so anything else becomes unique.

    Raises TypeError for a key that no mapping takes.
    """
    if isinstance(value, (dict, list)):
        raise TypeError(f"a key of a mapping that is a {type(value).__name__}")
    return value if isinstance(value, _KEY_TYPES) else Opaque(type(value).__name__)


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
