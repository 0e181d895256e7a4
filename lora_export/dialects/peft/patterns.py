r"""The regular expressions of rank_pattern and alpha_pattern, refused where they could hang.

PEFT 0.21.2, utils.other.get_pattern_key: the FIRST key in the file's order with
`re.match(rf"(.*\.)?({key})$", module)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lora_export.errors import InputError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterable

Value = TypeVar("Value")

MAX_LENGTH = 1000
MAX_REPEATS = 4
_PLAIN = re.compile(r"[\w.-]+")
_REPEAT = re.compile(r"(?<!\\)(?:[*+]|\{\d*,\d*\})")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)(?:[*+]|\{)")
_REFERENCE = re.compile(r"\\[1-9]|\(\?P=")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One key of rank_pattern or alpha_pattern."""

    text: str
    expression: re.Pattern[str]

    def fits(self, module: str) -> bool:
        """Whether PEFT takes the pattern for this module."""
        return self.expression.match(module) is not None


def compile_pattern(text: str, where: str) -> Pattern:
    """The pattern, if it is one, and one that cannot take for ever.

    Backtracking explodes where a repeated group repeats something, and grows with the number of
    unbounded repeats; both are bounded here, long before any name is matched.

    Raises:
        InputError: no regular expression.
        LimitError: it may take for ever.
    """
    if not _PLAIN.fullmatch(text):
        _refuse_slow(text, where)
    try:
        return Pattern(text, re.compile(rf"(.*\.)?({text})$"))
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{text!r:.200} is no pattern: {error}", where=where) from error


def _refuse_slow(text: str, where: str) -> None:
    repeats = len(_REPEAT.findall(text))
    nested = _REPEATED_GROUP.search(text) or _REFERENCE.search(text)
    if len(text) > MAX_LENGTH or repeats > MAX_REPEATS or nested:
        message = f"the pattern {text[:200]!r} may take for ever to match"
        hint = "write module names in rank_pattern and alpha_pattern"
        raise LimitError(message, where=where, hint=hint)


def first_fit(patterns: Iterable[tuple[Pattern, Value]], module: str, default: Value) -> Value:
    """The value of the first pattern, in the file's order, that fits the module."""
    return next((value for pattern, value in patterns if pattern.fits(module)), default)
