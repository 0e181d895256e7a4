"""Many reports on one page: the rows of a parity suite, the failures first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.report.page.escape import code, html, markdown, markdown_code
from lora_export.report.page.frame import MARKDOWN_START, Section, page
from lora_export.report.page.markdown import folded, markdown_page, table
from lora_export.report.page.measures import measures_of, of_allowed
from lora_export.report.page.pictures.axis import axis_picture, axis_words
from lora_export.report.page.pictures.bars import bar
from lora_export.report.page.provenance import Provenance
from lora_export.report.page.sections import verdict_block
from lora_export.report.page.tables import checks_table
from lora_export.report.verdict import verdict as verdict_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.report.page.rendered import Form
    from lora_export.report.result import Report
    from lora_export.report.verdict import Verdict

_WHOLE = 12
"""Reports that are shown whole; the failed ones first. The table has all of them."""

_SIGNS = {True: "\u2705", False: "\u274c", None: "\u2013"}
_KINDS = {
    "PROVED": ("ok", "\u2705"),
    "HOLDS": ("ok", "\u2705"),
    "UNCHANGED": ("info", "\u2013"),
    "FAILED": ("bad", "\u274c"),
}
"""The colour and the sign of a suite by the word of its verdict."""

_OTHER = ("warn", "\u26a0")
"""Of a suite that was interrupted, or of which no row was run."""

_WORDS = {True: ("ok", "holds"), False: ("bad", "FAILED"), None: ("warn", "skipped")}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a suite: a case with one artefact."""

    title: str
    report: Report | None = None
    """What was found; None where nothing was run."""
    holds: bool | None = True
    """Whether the row came out as the suite expects; None for a skipped row.

    A refusal that is expected holds.
    """
    note: str = ""
    """Why it was skipped or fails, that it was cached, or what was expected."""
    seconds: float | None = None
    """How long it took; None shows no time, which keeps the page the same from run to run."""
    command: str = ""
    """The command that repeats it."""
    verdict: Verdict | None = None
    """The verdict of a row whose report is not there; None takes that of the report."""


def rendered_suite(title: str, verdict: str, rows: Sequence[Row], form: Form) -> str:
    """Return one page on all rows: the verdict, a table, then each report that failed.

    Args:
        title: of the page, in plain text; the suite's file, for example.
        verdict: of the suite, as the terminal has it: a word, a colon, and how many rows hold.
        rows: in the order of the suite.
        form: "html" or "md".
    """
    order = sorted(rows, key=lambda row: {False: 0, None: 1, True: 2}[row.holds])
    written = _as_markdown if form == "md" else _as_html
    return written(title, verdict, order)


def _cells(row: Row) -> tuple[str, float | None]:
    """Return a row's verdict or note in plain text, and its share of the allowed error."""
    found = row.verdict or (verdict_of(row.report) if row.report else None)
    parts = [str(found) if found else "", row.note]
    return "; ".join(filter(None, parts)), found.share if found else None


def _share(share: float) -> str:
    return of_allowed(share).removesuffix(" of")


def _as_html(title: str, verdict: str, rows: Sequence[Row]) -> str:
    word, _, text = verdict.partition(": ")
    colour, _ = _KINDS.get(word, _OTHER)
    top = (
        f'<section class="verdict {colour}" aria-label="Verdict"><p class="word">{html(word)}</p>'
        f'<p class="text">{html(text)}</p></section>'
    )
    parts = [Section("rows", "All rows", _table(rows))]
    shown = [row for row in rows if row.report is not None][:_WHOLE]
    parts += [Section(f"row-{at}", row.title, _whole(row)) for at, row in enumerate(shown)]
    return page(title, top, parts)


def _table(rows: Sequence[Row]) -> str:
    timed = any(row.seconds is not None for row in rows)
    heads = '<th scope="col">Row</th><th scope="col">Of the allowed error</th>' + (
        '<th scope="col" class="number">Seconds</th>' if timed else ""
    )
    body = "".join(_row(row, timed=timed) for row in rows)
    return f'<table class="checks"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _row(row: Row, *, timed: bool) -> str:
    text, share = _cells(row)
    kind, word = _WORDS[row.holds]
    drawn = "" if share is None else f"{bar(share, kind)}<small>{_share(share)}</small>"
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    last = f'<td class="number">{seconds}</td>' if timed else ""
    return (
        f'<tr><th scope="row"><span class="tag {kind}">{word}</span> {html(row.title)}'
        f"<small>{html(text, 400)}</small></th>"
        f'<td class="draw">{drawn}</td>{last}</tr>'
    )


def _whole(row: Row) -> str:
    if row.report is None:
        return ""
    found = measures_of(row.report)
    note = f"<p>{html(row.note, 600)}</p>" if row.note else ""
    command = f"<pre>{code(row.command, 2000)}</pre>" if row.command else ""
    picture = f"{axis_picture(found)}<p>{html(axis_words(found), 600)}</p>" if found else ""
    return f"{verdict_block(row.report)}{note}{command}{picture}{checks_table(row.report)}"


def _as_markdown(title: str, verdict: str, rows: Sequence[Row]) -> str:
    timed = any(row.seconds is not None for row in rows)
    body = []
    for row in rows:
        text, share = _cells(row)
        cells = [_SIGNS[row.holds], markdown(row.title), markdown(text, 400)]
        cells.append("" if share is None else _share(share))
        body.append([*cells, *(["" if row.seconds is None else f"{row.seconds:.1f}"] * timed)])
    heads = ["", "row", "verdict", "of allowed", *(["seconds"] * timed)]
    failed = [row for row in rows if row.holds is False]
    blocks = [
        MARKDOWN_START,
        f"## {markdown(title)}",
        f"{_KINDS.get(verdict.partition(': ')[0], _OTHER)[1]} {markdown(verdict, 400)}",
        table(heads, body, "   rr"),
    ]
    for row in failed[:_WHOLE]:
        blocks += folded(markdown(row.title), _whole_markdown(row))
    return "\n\n".join(blocks) + "\n"


def _whole_markdown(row: Row) -> str:
    parts = [markdown(row.note, 600)] if row.note else []
    parts += [markdown_code(row.command, 2000)] if row.command else []
    if row.report:
        whole = markdown_page(row.report, Provenance())
        parts.append(whole.removeprefix(MARKDOWN_START).strip())
    return "\n\n".join(parts)
