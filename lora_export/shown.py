r"""Shows text from outside on one line that cannot pass for one of our own.

Names of tensors, modules and files come from strangers. A name may hold line breaks that forge a
line of a report, escape sequences that clear a terminal, or marks that turn the direction of text.

Everything that prints calls this module, at the last step before a line is joined to others:

- `shown` for a name, a cell of a table, a hint, or a paragraph in HTML, JUnit or Markdown. Call
  it first, then the escaping of that format: `html.escape(shown(name))`.
- `shown_line` for a message that stands alone on a terminal, or in an annotation: it is shortened.
- `shown_lines` to join the lines of a report, in place of `"\n".join`.
- `reason_of` for the error of a library that a message quotes.
- `shell_command` for a command that the user may copy, and `shell_word` for one word of it.

JSON keeps the true names: `json.dumps` escapes them, and a program compares them. All functions
leave text alone that they have returned once, so a second call does no harm.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST = 200
"""The most characters of a message on one line."""

HINT_MOST = 2000
"""The same of a hint or a note, which may hold a whole command with its paths."""

_CAPS = range(150, 29, -10)
"""The lengths to which long words of a message are cut, the first that suffices."""

_DOTS = "..."

_MARKS = 3
"""Combining marks that may follow one letter; more would be drawn over the lines around it."""

_JOINERS = "\u200c\u200d"
"""Zero-width joiners, without which some scripts and emoji are misspelt."""


def shown(text: str) -> str:
    r"""Return `text` on one line, with every character that is not printable as an escape.

    Escaped are line breaks, control characters, marks of direction, invisible formats, lone
    surrogates, spaces other than U+0020, and marks above _MARKS on one letter: `\n`, `\x1b`,
    `\u202e`. A backslash stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    parts: list[str] = []
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.category(char).startswith("M") else 0
        is_seen = char.isprintable() or char in _JOINERS
        parts.append(char if is_seen and marks <= _MARKS else _escape(char))
    return "".join(parts)


def shown_line(text: str, most: int = MOST) -> str:
    """Return `shown(text)` with at most `most` characters.

    Long words are cut in their middle, as paths and names are. Where that is not enough, the last
    words are left out.
    """
    if len(text) > 20 * most:  # a name may have megabytes
        text = _cut(text, 20 * most)
    line = shown(text)
    if len(line) <= most:
        return line
    words = line.split(" ")
    for cap in _CAPS:
        line = " ".join(_cut(word, cap) for word in words)
        if len(line) <= most:
            return line
    return f"{line[: most - len(_DOTS) - 1].rpartition(' ')[0]} {_DOTS}"


def shown_middle(text: str, most: int) -> str:
    """Return `shown(text)` without its middle, so that at most `most` characters are left."""
    return _cut(shown(_cut(text, 20 * most)), most)


def shown_lines(lines: Iterable[str]) -> str:
    """Return the lines as one text; a line break inside a line is escaped, so it forges none."""
    return "\n".join(shown(line) for line in lines)


_OPTIONS = r"weights_only|trust_remote_code|allow_pickle|set_int_max_str_digits"
_ADVICE = re.compile(
    r"\W*(?:\(\d\) )?"
    r"(?:please|use|set|pass|try|consider|make sure|re-?run|install|see|if you|you)\b"
    rf"|.*(?:{_OPTIONS})",
    re.IGNORECASE,
)
"""A clause with a library's advice: it is for the library's caller, and may be dangerous here."""


def reason_of(error: BaseException, most: int = MOST) -> str:
    """Return what the error of a library reports, on one line and without the library's advice.

    Python advises to lift its limits, and torch to load a file with weights_only=False. The name
    of the error's class is returned where nothing else is left.
    """
    text = " ".join(str(error)[: 20 * most].split())
    clauses = re.split(r"(?<=[.;!?]) ", text)
    kept = " ".join(clause for clause in clauses if not _ADVICE.match(clause))
    return shown_line(kept.rstrip("; "), most) or type(error).__name__


def shell_command(words: Iterable[str]) -> str:
    """Return the words of a command, each quoted by `shell_word`."""
    return " ".join(map(shell_word, words))


def shell_word(text: str, *, always: bool = False) -> str:
    r"""Return `text` quoted as one word for the shell, and as text that may be shown.

    always: quote a word that needs no quotes as well, as in a sentence.

    A word with characters that are not printable is written as `$'...'`, with the escapes of
    bash, zsh and POSIX 2024. They give the same bytes again, so the command may be copied.
    """
    if text.isprintable():
        quoted = shlex.quote(text)
        return f"'{text}'" if always and quoted == text else quoted
    return f"$'{''.join(map(_in_quotes, text))}'"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _in_quotes(char: str) -> str:
    """Return a character of a word between `$'` and `'`."""
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    # Three octal digits: a hexadecimal escape would take in the digits of the text that follow.
    is_byte = "\udc80" <= char <= "\udcff"  # a byte of a path that is no UTF-8
    encoded = char.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\{byte:03o}" for byte in encoded)


def _cut(text: str, most: int) -> str:
    """Return `text` without its middle, so that `most` characters are left."""
    if len(text) <= most:
        return text
    kept = most - len(_DOTS)
    return text[: kept - kept // 2] + _DOTS + text[-(kept // 2) :]
