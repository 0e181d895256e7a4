"""Pieces of text that reports share: rows in columns, wrapped lines, numbers with nouns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from lora_export.shown import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 100
"""Characters of a line where no terminal has another width: of files and pipes."""

_ROWS = 8
"""Rows of a long table that are shown without -v."""

_INDENT = 2
_FURTHER = 4
"""By how much the cells that do not fit into a row's first line are indented more."""

_NARROWEST = 24
"""The least characters of the last column; with fewer it begins on a line of its own."""


def laid_out(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Return the rows as lines of at most `width` characters, with their columns aligned.

    Columns that do not fit beside the others begin a further line, in every row at the same place.
    The last column is text, and is wrapped at words. Only a word is ever longer than the width.
    """
    return [line for lines in rows_of_lines(rows, width) for line in lines]


def rows_of_lines(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[list[str]]:
    """Return the lines of each row; see laid_out."""
    cells = [[shown(cell) for cell in row] for row in rows]
    filled = [column for column in zip(*cells, strict=True) if any(column)]
    if not filled:
        return [[] for _ in rows]
    places = _places([max(map(len, column)) for column in filled], width)
    return [_lines_of_row(row, places, width) for row in zip(*filled, strict=True)]


def _places(widths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Return for every column (the line that it is on, its first character)."""
    places: list[tuple[int, int]] = []
    line, at = 0, _INDENT
    for number, size in enumerate(widths):
        is_last = number == len(widths) - 1
        least = min(size, _NARROWEST) if is_last else size
        if at + least > width and number:
            line, at = line + 1, _INDENT + _FURTHER
        places.append((line, at))
        at += size + 2
    return places


def _lines_of_row(row: Sequence[str], places: Sequence[tuple[int, int]], width: int) -> list[str]:
    lines: list[str] = []
    begun = -1
    for cell, (line, at) in zip(row, places, strict=True):
        if not cell:
            continue
        is_last = at == places[-1][1] and line == places[-1][0]
        first, *rest = _wrapped(cell, width - at) if is_last else [cell]
        if line == begun:
            lines[-1] = f"{lines[-1].ljust(at)}{first}"
        else:
            lines.append(" " * at + first)
            begun = line
        lines += [" " * at + further for further in rest]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 1), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]


def fitted(text: str, width: int = WIDTH) -> str:
    """Return the text with every longer line wrapped at words, and indented by two more."""
    return "\n".join(_fitted_line(line, width) for line in text.split("\n"))


def _fitted_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    words = line.lstrip()
    indent = " " * (len(line) - len(words))
    return textwrap.fill(
        words,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def first_rows(
    rows: Sequence[Sequence[str]],
    *,
    verbose: bool,
    heading: Sequence[str] | None = None,
    width: int = WIDTH,
) -> list[str]:
    """Return the first rows in columns, and the number of the others.

    verbose: return all rows. heading: a first row that is not counted.
    """
    first = rows if verbose else rows[:_ROWS]
    lines = laid_out([heading, *first] if heading else first, width)
    if len(first) < len(rows):
        lines.append(f"  ... and {len(rows) - len(first)} more (-v lists them)")
    return lines


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names and the number of the others: `a, b, c and 2 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
