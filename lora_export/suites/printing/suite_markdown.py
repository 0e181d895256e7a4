"""The rows of a suite as Markdown that stays below a size: the summary of a GitHub step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.report.page.escape import markdown, markdown_code
from lora_export.suites.printing.rows_text import (
    WORDS,
    row_text,
    share_text,
    short_verdict,
    suite_verdict,
    time_text,
)

if TYPE_CHECKING:
    from lora_export.suites.outcome import Row, SuiteResult

_MOST_OF_A_ROW = 20_000
"""Characters of one row's details."""


def suite_markdown(result: SuiteResult, *, most: int | None = None) -> str:
    """Return the verdict, the table with the rows that do not hold first, and their details.

    most: bytes of the whole in UTF-8. Details that do not fit are left out, then rows; their number
    is given. None sets no limit.
    """
    rows = sorted(result.rows, key=lambda row: row.holds)
    text = f"## {markdown(suite_verdict(result))}\n\n{markdown_code(result.path)}\n\n"
    head = "| outcome | case | artefact | of the allowed error | seconds | cause |\n"
    text += head + "|---|---|---|---|---|---|\n"
    left = f"\n{len(rows):,} rows are not shown: the summary of a step is limited.\n"
    budget = None if most is None else most - len(left.encode())
    lines = [_line(row) for row in rows]
    details = [_details(row) for row in rows if not row.holds]
    text, shown = _filled(text, lines, budget)
    if shown < len(lines):
        return text + left.replace(f"{len(rows):,}", f"{len(rows) - shown:,}")
    text, shown = _filled(f"{text}\n", details, budget)
    if shown < len(details):
        text += f"\nThe details of {len(details) - shown:,} rows are not shown.\n"
    return text


def _filled(text: str, parts: list[str], budget: int | None) -> tuple[str, int]:
    """Return the text with as many parts as fit, and their number."""
    size = len(text.encode())
    for number, part in enumerate(parts):
        size += len(part.encode())
        if budget is not None and size > budget:
            return text, number
        text += part
    return text, len(parts)


def _line(row: Row) -> str:
    outcome = WORDS[row.outcome] if row.holds else f"**{WORDS[row.outcome]}**"
    cause = row.cause or short_verdict(row)
    cells = (
        outcome,
        markdown(row.case),
        markdown(row.artefact),
        share_text(row),
        time_text(row),
        markdown(cause),
    )
    return f"| {' | '.join(cells)} |\n"


def _details(row: Row) -> str:
    text = row_text(row)[:_MOST_OF_A_ROW]
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    title = f"{markdown(row.case)}, {markdown(row.artefact)}"
    return f"\n### {title}\n\n{fence}text\n{text}\n{fence}\n"
