"""Bounds of the work that a file may ask for: what its size does not explain is refused.

A few bytes can stand for much work: a list of a million empty lists, a name of 90 MB, a tensor
without elements. Every bound here is far above what real checkpoints hold. Together they keep a
file that is refused below two seconds of processor time and 200 MB of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Iterable

TENSORS = 20_000
"""Tensors of one file that need no explanation by its size."""

BYTES_A_TENSOR = 1_000
"""Bytes of a file for each further tensor. A factor of rank 8 in half precision takes 16 KB."""

NAME_PARTS = 64
"""Parts of a tensor's name between dots: names are compared by all of their ends."""

JSON_DEPTH = 100
"""How deep JSON is nested at most. Code that walks it by calling itself needs such a bound."""


@dataclass(frozen=True, slots=True)
class JsonBounds:
    """How much JSON is parsed. Python's objects take up to 100 bytes a value, in any order."""

    values: int
    """Commas, colons and opening brackets, those inside of texts included."""
    size: int
    """Bytes of UTF-8 that is ASCII throughout."""
    wide: int
    """Bytes of other UTF-8: one wide character makes Python keep four bytes for each character."""

    def plus(self, file_size: int) -> JsonBounds:
        """Return the bounds of the header of a file with `file_size` bytes."""
        more = file_size // 100
        return JsonBounds(self.values + more, self.size + more, self.wide + more)


JSON = JsonBounds(2_000_000, 32_000_000, 16_000_000)
"""The bounds of a JSON file. An index of 200,000 tensors has 400,000 values in 20 MB."""

HEADER = JsonBounds(1_200_000, 24_000_000, 16_000_000)
"""The bounds of a safetensors header, before its file's size is added. A tensor has 13 values."""

VOCABULARY = JsonBounds(8_000_000, 100_000_000, 100_000_000)
"""The bounds of tokenizer.json. That of Gemma 3 has 2 million values in 33 MB."""


def bound_json(content: bytes, where: str, bounds: JsonBounds) -> None:
    """Refuse JSON that would take more memory or time to parse than the bounds allow.

    Raises:
        LimitError: it is too long, or has too many values; `where` names the place.
    """
    most = bounds.size if content.isascii() else bounds.wide
    if len(content) > most:
        raise _too_much(f"JSON of {len(content):,} bytes; at most {most:,} are read", where)
    values = sum(content.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > bounds.values:
        text = f"JSON of {values:,} values; at most {bounds.values:,} are read"
        raise _too_much(text, where)


def is_too_deep(value: object) -> bool:
    """Return whether parsed JSON is nested deeper than JSON_DEPTH."""
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [one for item in level for one in _inside(item) if isinstance(one, (dict, list))]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def bound_tensors(count: int, file_size: int, where: str) -> None:
    """Refuse a file whose tensors are too many for its size.

    Raises:
        LimitError: as above.
    """
    most = TENSORS + file_size // BYTES_A_TENSOR
    if count > most:
        text = f"{count:,} tensors in {file_size:,} bytes; at most {most:,} are read"
        raise _too_much(text, where)


def _too_much(message: str, where: str) -> LimitError:
    hint = "check where the file comes from: no checkpoint that is known needs as much"
    return LimitError(message, where=where, hint=hint, cause="limit/size")
