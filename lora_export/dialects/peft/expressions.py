"""Matches a regular expression against a whole name, in a bounded number of steps.

target_modules and exclude_modules may hold any expression, with lookaheads and many repeats.
Python's matcher tries one way after the other and takes for ever on some of them. This one keeps
all places of the name at which a part of the expression can end, as the bits of a number. No way is
then tried twice. Python's own parser reads the expression.
"""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

from lora_export.errors import InputError, LimitError

if sys.version_info >= (3, 11):
    from re import _constants as codes  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as codes
    import sre_parse as parser

MAX_LENGTH = 100_000
"""The longest expression. Some trainers write one alternative for each module."""

MAX_STEPS = 2_000_000
"""The most steps for all names of an adapter together: a few seconds of Python."""

_IGNORECASE, _DOTALL = int(re.IGNORECASE), int(re.DOTALL)  # `&` of two ints is the faster one
_FLAGS = int(re.UNICODE | re.VERBOSE) | _IGNORECASE | _DOTALL
_HINT = "write the names of the modules as a list"
_MANY = codes.MAXREPEAT


@dataclass(slots=True)
class Expression:
    """One expression of a config."""

    text: str
    where: str
    """The file, for messages."""
    tree: Any
    """The expression as Python's parser returns it."""
    flags: int
    """The flags that the expression sets for all of it."""
    steps: int = 0
    """The steps that all matches have taken so far."""
    begun: dict[int, dict[str, list[Any]]] = field(default_factory=dict)
    """The alternatives of each choice by their first letter; "" for any other beginning."""

    @classmethod
    def of(cls, text: str, where: str) -> Expression:
        """Parse an expression.

        Raises:
            InputError: it is no regular expression.
            LimitError: it is too long.
        """
        if len(text) > MAX_LENGTH:
            message = f"the pattern {text[:200]!r} has {len(text)} characters"
            raise LimitError(message, where=where, hint=_HINT, cause="limit/pattern")
        try:
            with warnings.catch_warnings():
                # Python warns of character sets whose meaning may change in a later version.
                warnings.simplefilter("ignore")
                tree = parser.parse(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"{text!r:.200} is no pattern: {error}", where=where, cause="input/adapter-config"
            ) from error
        return cls(text, where, tree, tree.state.flags)

    def fits(self, name: str) -> bool:
        """Return whether the expression fits the whole name, as `re.fullmatch(text, name)` does.

        Raises:
            LimitError: it takes too many steps, or has a part that is not supported, such as a
                back reference.
        """
        try:
            ends = _Match(self, name).run(self.tree, 1, self.flags)
        except RecursionError as error:
            raise self.refusal("is nested too deeply") from error
        return bool(ends >> len(name))

    def count(self) -> None:
        """Count one step.

        Raises:
            LimitError: there were too many.
        """
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise self.refusal("may take for ever to match")

    def refusal(self, why: str) -> LimitError:
        """Return the error of an expression that cannot be matched here."""
        return LimitError(
            f"the pattern {self.text[:200]!r} {why}",
            where=self.where,
            hint=_HINT,
            cause="limit/pattern",
        )


@dataclass(slots=True)
class _Match:
    """One expression on one name.

    A set of places in the name is a number. Its bit p stands for the place before letter p.
    """

    expression: Expression
    name: str
    letters: dict[str, int] = field(default_factory=dict)
    """The places before each letter."""
    known: dict[tuple[int, int], int] = field(default_factory=dict)
    """The places before a letter that fits, by the part of the expression and its flags."""

    def __post_init__(self) -> None:
        """Find the places before each letter."""
        for place, letter in enumerate(self.name):
            self.letters[letter] = self.letters.get(letter, 0) | 1 << place

    def run(self, tree: Any, places: int, flags: int) -> int:
        """Return all places at which a match of `tree` that begins at any of `places` can end."""
        for operation, value in tree:
            if not places:
                return 0
            self.expression.count()
            places = self._step(operation, value, places, flags)
        return places

    def _step(self, operation: Any, value: Any, places: int, flags: int) -> int:
        if operation in _SINGLE:
            return (places & self._fitting(operation, value, flags)) << 1
        if operation is codes.BRANCH:
            ends = 0
            for alternative in self._possible(value[1], places, flags):
                ends |= self.run(alternative, places, flags)
            return ends
        if operation is codes.SUBPATTERN:
            _, added, removed, tree = value
            return self.run(tree, places, self._allowed((flags | added) & ~removed))
        if operation in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            return self._repeat(value, places, flags)
        if operation is codes.AT:
            return places & self._anchors(value)
        if operation in (codes.ASSERT, codes.ASSERT_NOT):
            return self._look(value, places, flags, wanted=operation is codes.ASSERT)
        raise self.expression.refusal(f"has {str(operation).lower()}, which is not supported here")

    def _possible(self, alternatives: list[Any], places: int, flags: int) -> list[Any]:
        """Return the alternatives whose first letter is at one of the places, where it is known.

        Some trainers write an alternative for each module, and few begin with the same letter.
        """
        if flags & _IGNORECASE:
            return alternatives
        # The tree keeps the list alive, so its id stays its own.
        begun = self.expression.begun.setdefault(id(alternatives), {})
        if not begun:
            for one in alternatives:
                is_letter = len(one) > 0 and one[0][0] is codes.LITERAL
                begun.setdefault(chr(one[0][1]) if is_letter else "", []).append(one)
        here = [one for letter, one in begun.items() if self.letters.get(letter, 0) & places]
        return [alternative for some in (begun.get("", []), *here) for alternative in some]

    def _allowed(self, flags: int) -> int:
        if flags & ~_FLAGS:
            raise self.expression.refusal("has flags that are not supported here")
        return flags

    def _fitting(self, operation: Any, value: Any, flags: int) -> int:
        """Return the places before a letter that fits."""
        either = bool(self._allowed(flags) & _IGNORECASE)
        if operation is codes.LITERAL and not either:
            return self.letters.get(chr(value), 0)
        # A set is a list, which has no hash; the tree keeps it alive, so its id stays its own.
        key = (id(value) if operation is codes.IN else hash((operation, value)), flags)
        if key not in self.known:
            fits = _SINGLE[operation]
            found = (m for letter, m in self.letters.items() if fits(value, letter, flags, either))
            self.known[key] = sum(found)
        return self.known[key]

    def _repeat(self, value: Any, places: int, flags: int) -> int:
        """Return the places at which between `least` and `most` repeats can end."""
        least, most, tree = value
        for _ in range(least):
            ends = self.run(tree, places, flags)
            if ends == places:  # further repeats give the same places
                break
            places = ends
        found, times = places, least
        while places and (most is _MANY or times < most):
            # Only new places go on: the loop ends after as many turns as the name has letters.
            places = self.run(tree, places, flags) & ~found
            found |= places
            times += 1
        return found

    def _anchors(self, value: Any) -> int:
        """Return the places at which an anchor holds."""
        length, name = len(self.name), self.name
        if value in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
            return 1
        if value is codes.AT_END_STRING:
            return 1 << length
        if value is codes.AT_END:
            return 1 << length | (1 << length - 1 if name.endswith("\n") else 0)
        words = [False, *map(_is_word, name), False]
        edges = sum(1 << p for p in range(length + 1) if words[p] != words[p + 1])
        return edges if value is codes.AT_BOUNDARY else ~edges & (1 << length + 1) - 1

    def _look(self, value: Any, places: int, flags: int, *, wanted: bool) -> int:
        """Return the places at which a lookahead (a lookbehind if direction is -1) holds."""
        direction, tree = value
        # Python's parser only allows lookbehinds of one width, so there is one place to begin.
        back = tree.getwidth()[0] if direction < 0 else 0
        kept = 0
        for place in range(len(self.name) + 1):
            if places >> place & 1:
                ends = self.run(tree, 1 << place - back, flags) if place >= back else 0
                if bool(ends >> place & 1 if direction < 0 else ends) is wanted:
                    kept |= 1 << place
        return kept


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


def _is_literal(value: int, letter: str, _: int, either: bool) -> bool:
    given = chr(value)
    return given.lower() == letter.lower() if either else given == letter


def _is_not_literal(value: int, letter: str, flags: int, either: bool) -> bool:
    return not _is_literal(value, letter, flags, either)


def _is_any(_: None, letter: str, flags: int, __: bool) -> bool:
    return letter != "\n" or bool(flags & _DOTALL)


def _is_in(value: Any, letter: str, _: int, either: bool) -> bool:
    negated = value[0][0] is codes.NEGATE
    letters = {letter, letter.lower(), letter.upper()} if either else {letter}
    found = any(_is_item(item, one) for item in value[negated:] for one in letters)
    return found is not negated


def _is_item(item: tuple[Any, Any], letter: str) -> bool:
    operation, value = item
    if operation is codes.LITERAL:
        return chr(value) == letter
    if operation is codes.RANGE:
        return bool(value[0] <= ord(letter) <= value[1])
    return bool(_CATEGORIES[value](letter))


_CATEGORIES: dict[Any, Any] = {
    codes.CATEGORY_DIGIT: str.isdecimal,
    codes.CATEGORY_NOT_DIGIT: lambda letter: not letter.isdecimal(),
    codes.CATEGORY_SPACE: str.isspace,
    codes.CATEGORY_NOT_SPACE: lambda letter: not letter.isspace(),
    codes.CATEGORY_WORD: _is_word,
    codes.CATEGORY_NOT_WORD: lambda letter: not _is_word(letter),
}
_SINGLE: dict[Any, Any] = {
    codes.LITERAL: _is_literal,
    codes.NOT_LITERAL: _is_not_literal,
    codes.ANY: _is_any,
    codes.IN: _is_in,
}
