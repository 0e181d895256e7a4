"""Stand-ins for a pickle's classes and objects, and the bounded file that a pickle is read from."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import LimitError

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_PICKLE_BYTES = 100_000_000
"""Upper bound of one pickle; the tensors' bytes lie outside it."""

MAX_VALUE_BYTES = 120_000_000
"""Upper bound of the memory that the texts, numbers and bytes of one pickle take together."""

SAVE_AGAIN = "load the checkpoint where it was made and torch.save its state dict again"
"""What to do about a file that readers understand differently."""

_LONGEST_KEY = 200
"""Items of a tuple that is the key of a mapping, at most, with those of the tuples in it."""

_KEY_TYPES = (str, int, float, bytes, type(None))


class PickleError(Exception):
    """A pickle that is complete but must not be read; `hint` names what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names; never imported."""

    name: str
    """Module and name, joined by a dot."""


@dataclass(slots=True, eq=False)
class Opaque:
    """An object of an unknown class, left closed."""

    name: str
    """Its class."""
    state: object = None
    """What the pickle gave the object: arguments or attributes."""
    tensor_like: bool = False
    """Whether the file's author had a tensor here (quantised, sparse, of a subclass)."""
    hint: str = ""
    """What the author can save instead, if that is known."""


class Built(dict[object, object]):
    """A dictionary of a class (OrderedDict); unlike a plain one, it can have attributes."""

    __slots__ = ()


def mapping_key(value: object) -> object:
    """Return a value as the key of a dict.

    A scalar is its own key. Anything else becomes a unique key, because hashing a nested tuple of
    a hostile file may take for ever.

    Raises:
        TypeError: the value is one that Python cannot hash.
    """
    if isinstance(value, (dict, list)) or (isinstance(value, tuple) and not _is_hashable(value)):
        raise TypeError(f"a {type(value).__name__} as the key of a mapping")
    return value if isinstance(value, _KEY_TYPES) else Opaque(type(value).__name__)


def _is_hashable(value: tuple[object, ...]) -> bool:
    """Return whether Python can hash a tuple: it holds no list or mapping, however deep.

    Each tuple in it is looked through once, and False is returned where there is too much to see.
    """
    waiting: list[object] = [value]
    seen: set[int] = set()
    for _ in range(_LONGEST_KEY):
        if not waiting:
            return True
        item = waiting.pop()
        if isinstance(item, (dict, list)):
            return False
        if isinstance(item, tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item[:_LONGEST_KEY])
    return not waiting


@dataclass(slots=True)
class BoundedReader:
    """A binary file of which only a bounded number of bytes may be read."""

    file: BinaryIO
    budget: int
    """How many more bytes may be read."""
    where: str
    """The file's name for messages."""
    rest: int = sys.maxsize
    """Bytes up to the end of the pickle's place in the file."""
    longest: int = MAX_PICKLE_BYTES
    """Bytes of the value that is read next, at most."""

    def _spend(self, part: bytes) -> bytes:
        self.budget -= len(part)
        self.rest -= len(part)
        return part

    def read(self, length: int) -> bytes:
        """Read `length` bytes; fewer at the end of the file.

        Raises:
            LimitError: that is more than the budget.
        """
        # Asked before the read: a pickle may claim a length that would fill all memory.
        most = min(self.budget, self.longest)
        if length > most:
            raise self._too_much(most)
        return self._spend(self.file.read(min(length, self.rest)))

    def readline(self) -> bytes:
        """Read the bytes up to the end of the line.

        Raises:
            LimitError: the line is longer than the budget.
        """
        most = min(self.budget, self.longest)
        line = self._spend(self.file.readline(min(most + 1, self.rest)))
        if len(line) > most:
            raise self._too_much(most)
        return line

    def _too_much(self, most: int) -> LimitError:
        return LimitError(
            f"its pickle asks for more than {most:,} bytes",
            where=self.where,
            hint=SAVE_AGAIN,
            cause="limit/size",
        )
