"""The rows of a suite as text: a verdict, a line a row, and what to do about those that fail."""

from __future__ import annotations

import shlex
from collections import Counter
from glob import escape
from typing import TYPE_CHECKING

from lora_export.report.columns import WIDTH, counted, first_names, fitted, laid_out
from lora_export.report.sentences import failed_sentence, named_sentence, percent, times
from lora_export.report.text import checks_text, next_text
from lora_export.shown import shown, shown_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.suites.outcome import Outcome, Row, SuiteResult

WORDS: dict[Outcome, str] = {
    "held": "holds",
    "failed": "FAILED",
    "error": "ERROR",
    "bug": "BUG",
    "skipped": "skipped",
}
"""The outcome of a row in a word."""


def suite_verdict(result: SuiteResult) -> str:
    """Return the outcome of the whole suite in one line.

    It is PROVED only where a row is. Files that are as their manifests have them are UNCHANGED. A
    suite of refusals alone, all of which are expected, HOLDS.
    """
    rows, counts = result.rows, Counter(row.outcome for row in result.rows)
    held = [row for row in rows if row.outcome == "held"]
    words = Counter(row.verdict.word for row in held if row.verdict)
    shares = [row.share for row in held if not row.status and row.share is not None]
    cached = sum(row.cached for row in rows)
    notes = [
        f"{counts['skipped']} skipped" if counts["skipped"] else "",
        f"{cached} cached" if cached else "",
        f"{result.left} not run" if result.left else "",
    ]
    more = "".join(f", {note}" for note in notes if note)
    total = len(rows) + result.left
    if result.stopped:
        return f"INTERRUPTED: {counts['held']} of {counted(total, 'row')} hold{more}"
    if not result.passed:
        wrong = sum(not row.holds for row in rows)
        return f"FAILED: {wrong} of {counted(total, 'row')} {_does(wrong)} not hold{more}"
    if not counts["held"]:
        return f"NOT PROVED: no row was run{more}"
    tight = f", to {percent(max(shares))} of the allowed error" if shares else ""
    word = next((one for one in ("PROVED", "UNCHANGED") if words[one]), "HOLDS")
    does = "holds" if len(held) == 1 else "hold"
    alone, refused = words["UNCHANGED"], words["REFUSED"]
    how = f", {alone} by {_its(alone)} alone" if alone else ""
    how += f", {refused} refused, as expected" if refused else ""
    return f"{word}: {counted(len(held), 'row')} {does}{tight}{how}{more}"


def _its(number: int) -> str:
    return "its manifest" if number == 1 else "their manifests"


def _does(number: int) -> str:
    return "does" if number == 1 else "do"


def suite_text(result: SuiteResult, *, verbose: bool = False, width: int = WIDTH) -> str:
    """Return the verdict, a line a row, the rows that do not hold, and the next command.

    Args:
        result: of the suite.
        verbose: list the warnings and checks of every row.
        width: characters of a line.
    """
    parts = [fitted(suite_verdict(result), width)]
    if result.rows:
        parts.append("\n".join(laid_out([row_cells(row) for row in result.rows], width)))
    wrong = [row for row in result.rows if not row.holds]
    parts += [_fitted(row_text(row), width) for row in wrong]
    skipped = [row for row in result.rows if row.outcome == "skipped"]
    if skipped:
        parts.append(
            shown_lines(f"skipped {row.case}, {row.artefact}: {row.cause}" for row in skipped)
        )
    if verbose:
        parts += [_checks(row, width) for row in result.rows if row.holds]
    if wrong:
        words = ["lora-export", "parity", str(result.path), "--case", escape(wrong[0].case)]
        parts.append(next_text(shlex.join(words), width))
    return "\n\n".join(filter(None, parts))


def _checks(row: Row, width: int) -> str:
    """Return the warnings and checks of a row; empty where it has neither."""
    if not row.report or not (row.report.checks or row.report.warnings):
        return ""
    parts = [shown(f"{row.case}, {row.artefact}")]
    parts += [fitted(shown(f"  note: {words}"), width) for words in row.report.warnings]
    if row.report.checks:
        parts.append(checks_text(row.report.checks, verbose=True, width=width))
    return "\n".join(parts)


def _fitted(text: str, width: int) -> str:
    """Wrap all lines but those of commands, which are copied whole."""
    lines = text.splitlines()
    return "\n".join(one if one.startswith("  $ ") else fitted(one, width) for one in lines)


def row_cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table: outcome, case, artefact, share, seconds, verdict."""
    words = (share_text(row), time_text(row), short_verdict(row))
    return (WORDS[row.outcome], row.case, row.artefact, *words)


def share_text(row: Row) -> str:
    """Return the worst error in percent of what is allowed; as a factor where it is larger."""
    if row.share is None:
        return ""
    return percent(row.share) if row.share <= 1 else times(row.share)


def time_text(row: Row) -> str:
    """Return how long a row took, or that an earlier run had passed."""
    if row.outcome == "skipped":
        return ""
    return "cached" if row.cached else f"{row.seconds:.1f} s"


def short_verdict(row: Row) -> str:
    """Return the verdict's word, and whether a refusal was expected."""
    if row.verdict is None:
        return ""
    expected = row.outcome == "held" and row.verdict.word == "REFUSED"
    return f"{row.verdict.word}{', as expected' if expected else ''}"


def row_text(row: Row) -> str:
    """Return what is wrong with a row, where it was found, and the command that repeats it."""
    return shown_lines(
        [f"{WORDS[row.outcome]} {row.case}, {row.artefact}: {row.cause}", *_more(row)]
    )


def _more(row: Row) -> Iterator[str]:
    if row.report:
        if row.report.attribution:
            yield f"  {row.report.attribution}"
        for finding in row.report.findings:
            message = finding.message if finding.message != row.cause else ""
            names = first_names(finding.names)
            yield f"  {': '.join(filter(None, (message, names)))}".rstrip()
        failed = [check for check in row.report.checks if not check.passed]
        further = [check for check in failed if failed_sentence(check) != row.cause]
        yield from (f"  {named_sentence(check)}" for check in further)
        problems = row.report.problems if not failed else ()
        for problem in problems:
            yield from (f"  {line}" for line in str(problem).splitlines())
    if row.traceback:
        yield from (f"  {line}" for line in row.traceback.splitlines())
    if row.command:
        yield f"  $ {row.command}"
