"""Pieces of text that reports share: aligned rows, numbers with nouns, shortened lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROWS = 8
"""Rows of a long table that are shown without -v."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return each row as a line, with the columns of all lines aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def first_rows(
    rows: Sequence[Sequence[str]], *, verbose: bool, heading: Sequence[str] | None = None
) -> list[str]:
    """Return the first rows as aligned lines, and the number of the others.

    verbose: return all rows. heading: a first row that is not counted.
    """
    shown = rows if verbose else rows[:_ROWS]
    lines = aligned([heading, *shown] if heading else shown)
    if len(shown) < len(rows):
        lines.append(f"  ... and {len(rows) - len(shown)} more (-v lists them)")
    return lines


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names and the number of the others: `a, b, c and 2 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
