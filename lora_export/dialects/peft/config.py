"""Reads adapter_config.json as PEFT writes it, strictly: every member has its type and bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from lora_export.dialects.peft.patterns import Pattern, compile_pattern
from lora_export.errors import InputError, LimitError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_RANK = 1 << 16
"""The highest rank. PEFT itself has no bound: r = 10^8 makes it ask for 51 GB."""

MAX_NUMBER = 1e9
"""The largest alpha. JSON can hold an integer that is too large for a float."""

MAX_PATTERNS = 10_000
"""The most patterns. EVA writes one a module."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The members of the file, read by type.

    A missing or null member has its default. Every method raises InputError for a wrong type.
    """

    path: Path
    members: Mapping[str, object]

    @property
    def peft_type(self) -> str:
        """Return LORA, LOHA, ... in capitals."""
        return self.text("peft_type").upper()

    def refuse(self, key: str, message: str, hint: str = "") -> NoReturn:
        """Raise InputError about one member."""
        raise InputError(
            f"{key} {message}", where=str(self.path), hint=hint, cause="input/adapter-config"
        )

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a member that is true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, f"= {_shown(value)} is neither true nor false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """Return a member that is a text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            self.refuse(key, f"= {_shown(value)} is no text")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a member that is a positive whole number, at most MAX_RANK.

        Raises:
            LimitError: it is larger.
        """
        return self._rank(key, self._get(key, default))

    def number(self, key: str, default: float | None = None) -> float:
        """Return a member that is a finite number, at most MAX_NUMBER."""
        return self._finite(key, self._get(key, default))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a member that is a list of texts; one text counts as a list of one."""
        value = self._get(key, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            self.refuse(key, f"= {_shown(value)} is no list of texts")
        return tuple(items)

    def table(self, key: str) -> Mapping[str, object]:
        """Return a member that is an object; empty when it is missing."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, f"= {_shown(value)} is no object")
        return value

    def ranks(self) -> list[tuple[Pattern, int]]:
        """Return the patterns of rank_pattern with their ranks, in the order of the file.

        Raises:
            LimitError: there are too many, a rank is too high, or a pattern may take for ever.
        """
        found = self._patterns("rank_pattern").items()
        return [(self._pattern(k), self._rank(f"rank_pattern {k}", v)) for k, v in found]

    def alphas(self) -> list[tuple[Pattern, float]]:
        """Return the patterns of alpha_pattern with their alphas, in the order of the file.

        Raises:
            LimitError: there are too many, or a pattern may take for ever.
        """
        found = self._patterns("alpha_pattern").items()
        return [(self._pattern(k), self._finite(f"alpha_pattern {k}", v)) for k, v in found]

    def _patterns(self, key: str) -> Mapping[str, object]:
        found = self.table(key)
        if len(found) > MAX_PATTERNS:
            message = f"{key} holds {len(found)} patterns, more than {MAX_PATTERNS}"
            raise LimitError(message, where=str(self.path), cause="limit/adapter")
        return found

    def _get(self, key: str, default: object) -> object:
        value = self.members.get(key)
        return default if value is None else value

    def _pattern(self, text: str) -> Pattern:
        return compile_pattern(text, str(self.path))

    def _rank(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            self.refuse(key, f"= {_shown(value)} is no positive whole number")
        if value > MAX_RANK:
            message = f"{key} = {_shown(value)} is above {MAX_RANK}"
            raise LimitError(
                message,
                where=str(self.path),
                hint="no adapter has such a rank",
                cause="limit/adapter",
            )
        return value

    def _finite(self, key: str, value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) < math.inf:  # type: ignore[arg-type]
            self.refuse(key, f"= {_shown(value)} is no finite number")
        if abs(value) > MAX_NUMBER:  # type: ignore[arg-type]
            self.refuse(key, f"= {_shown(value)} is above {MAX_NUMBER:g}")
        return value  # type: ignore[return-value]


def _shown(value: object) -> str:
    """Return a value for a message. Python refuses to print an integer of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.80}"
