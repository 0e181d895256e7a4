r"""Matches the regular expressions of rank_pattern and alpha_pattern; refuses what could hang.

Reproduces PEFT 0.21.2, utils.other.get_pattern_key: the FIRST key in the file's order with
`re.match(rf"(.*\.)?({key})$", module)`.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_export.errors import InputError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Value = TypeVar("Value")

MAX_LENGTH = 1000
"""The longest pattern, in characters."""

MAX_REPEATS = 3
"""The most unbounded repeats in a pattern; each multiplies the ways by the name's length."""

MAX_STEPS = 10_000_000
"""The most ways to try one name, an upper bound: a tenth of a second of Python's matcher."""

MAX_WORK = 1_000_000_000
"""The same of all names together, for the patterns of one member of a config."""

_LOOK_UP = 500
"""What one look at a table of plain patterns counts, in ways to try."""

_HINT = "write module names in rank_pattern and alpha_pattern"
_PLAIN = re.compile(r"[\w.-]+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_REPEAT = re.compile(r"[*+]|\{\d*,\d*\}")
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{)")
_OPTIONAL = re.compile(r"(?<![(*+?}])\?")
_REFERENCE = re.compile(r"\(\?P=|\(\?\(")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One key of rank_pattern or alpha_pattern."""

    text: str
    expression: re.Pattern[str]
    """The expression that PEFT makes of the key."""
    where: str = ""
    """The file, for messages."""
    repeats: int = 0
    """The number of unbounded repeats."""
    ways: int = 1
    """The number of ways to choose among alternatives and optional parts."""

    def fits(self, module: str) -> bool:
        """Return whether PEFT applies the pattern to this module.

        Raises:
            LimitError: matching so long a name may take for ever.
        """
        if self.steps(module) > MAX_STEPS:
            _refuse(self.text, self.where)
        return self.expression.match(module) is not None

    def steps(self, module: str) -> int:
        """Return the most ways to try the name."""
        free = self.repeats + 1  # `(.*\.)?` before the pattern repeats as well
        return self.ways * comb(len(module) + free, free)


def compile_pattern(text: str, where: str) -> Pattern:
    """Compile a pattern, unless it may take for ever to match.

    Backtracking explodes if a repeated group repeats or chooses something. It grows with the number
    of repeats and choices. All of them are bounded here, before any name is matched.

    Raises:
        InputError: it is no regular expression.
        LimitError: it may take for ever.
    """
    repeats, ways = (0, 1) if _PLAIN.fullmatch(text) else _measure(text, where)
    try:
        with warnings.catch_warnings():
            # Python warns of character sets whose meaning may change in a later version.
            warnings.simplefilter("ignore")
            expression = re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"{text!r:.200} is no pattern: {error}", where=where, cause="input/adapter-config"
        ) from error
    return Pattern(text, expression, where, repeats, ways)


def _measure(text: str, where: str) -> tuple[int, int]:
    """Return (unbounded repeats, ways to choose among alternatives and options)."""
    if len(text) > MAX_LENGTH:
        _refuse(text, where)
    back = any(found[1] in "123456789" for found in _ESCAPE.finditer(text))
    # Escapes and sets stand for one letter each; their characters are no operators.
    plain = _CLASS.sub("c", _ESCAPE.sub("e", text))
    repeats = len(_REPEAT.findall(plain))
    # 64 options are far beyond MAX_STEPS already; more would only make a huge number.
    ways = _alternatives(plain) * 2 ** min(len(_OPTIONAL.findall(plain)), 64)
    nested = _REPEATED_GROUP.search(plain) or _REFERENCE.search(plain)
    if repeats > MAX_REPEATS or ways > MAX_STEPS or nested or back:
        _refuse(text, where)
    return repeats, ways


def _alternatives(plain: str) -> int:
    """Return the product of the numbers of alternatives of all groups."""
    ways, open_groups = 1, [1]
    for letter in plain:
        if letter == "(":
            open_groups.append(1)
        elif letter == "|":
            open_groups[-1] += 1
        elif letter == ")" and len(open_groups) > 1:
            ways *= open_groups.pop()
    for rest in open_groups:
        ways *= rest
    return ways


def _refuse(text: str, where: str) -> None:
    message = f"the pattern {text[:200]!r} may take for ever to match"
    raise LimitError(message, where=where, hint=_HINT, cause="limit/pattern")


class Patterns(Generic[Value]):
    """The patterns of one member of a config with their values, in the order of the file.

    A file may have a pattern for each of thousands of modules. A pattern without operators is
    looked up by the places of its dots, which fit any letter; only the others are tried in turn.
    """

    def __init__(self, pairs: Iterable[tuple[Pattern, Value]]) -> None:
        """Sort the patterns into those that are looked up and those that are tried."""
        self._pairs = tuple(pairs)
        self._tried: list[int] = []
        #: The places of plain patterns in the file: by length, by the places of dots, by text.
        self._plain: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._left = MAX_WORK
        for place, (pattern, _) in enumerate(self._pairs):
            text = pattern.text
            if _PLAIN.fullmatch(text):
                dots = tuple(at for at, letter in enumerate(text) if letter == ".")
                alike = self._plain.setdefault(len(text), {}).setdefault(dots, {})
                alike.setdefault(text, place)
            else:
                self._tried.append(place)

    def first_fit(self, module: str, default: Value) -> Value:
        """Return the value of the first pattern, in the file's order, that fits the module.

        Raises:
            LimitError: matching all modules may take for ever.
        """
        is_odd = "\n" in module  # `.` and `$` treat a line break in ways of their own
        plain = min(() if is_odd else self._looked_up(module), default=len(self._pairs))
        for place in range(plain) if is_odd else self._tried:
            if place < plain and self._fits(place, module):
                return self._pairs[place][1]
        return self._pairs[plain][1] if plain < len(self._pairs) else default

    def _looked_up(self, module: str) -> Iterator[int]:
        """Yield the place of each plain pattern that fits the module."""
        starts = [0, *(at + 1 for at, letter in enumerate(module) if letter == ".")]
        for tail in [module[start:] for start in starts if len(module) - start in self._plain]:
            for dots, texts in self._plain[len(tail)].items():
                self._spend(_LOOK_UP + len(tail))
                letters = list(tail)
                for at in dots:
                    letters[at] = "."
                if (place := texts.get("".join(letters))) is not None:
                    yield place

    def _fits(self, place: int, module: str) -> bool:
        pattern = self._pairs[place][0]
        self._spend(min(pattern.steps(module), MAX_STEPS))
        return pattern.fits(module)

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            pattern = self._pairs[0][0]
            text = f"its {len(self._pairs):,} patterns may take for ever to match"
            raise LimitError(text, where=pattern.where, hint=_HINT, cause="limit/pattern")
