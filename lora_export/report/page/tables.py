"""The checks of a report as a table, with a bar for the share of what each allows."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from lora_export.report.page.escape import html
from lora_export.report.page.measures import of_allowed, size, times
from lora_export.report.page.pictures.bars import bar
from lora_export.report.sentences import failed_sentence
from lora_export.report.verdict import share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Check, Level
    from lora_export.report.result import Report

LEVELS: dict[Level, str] = {
    "": "Others",
    "manifest": "Files, with the manifest and the plan",
    "weights": "Weights, with their recomputation in float64",
    "model": "Outputs, with the unmerged model's",
    "file": "ONNX file, with the base's graph and the merged weights",
    "runtime": "Outputs of ONNX Runtime, with the torch models'",
    "precision": "Lower precision, with the float32 graph",
}
"""The heading of each level: what is compared with what."""

_MOST = 200
"""Checks that are shown; a graph of many outputs has some dozens."""


def checks_table(report: Report) -> str:
    """Return all checks by level as HTML, and the levels that were not run; empty without both."""
    rows: list[str] = []
    for level, checks in by_level(report.checks[:_MOST]).items():
        rows += [_group(LEVELS.get(level, level)), *map(_row, checks)]
    rows += [_unproven(level, why) for level, why in report.unproven.items()]
    if not rows:
        return ""
    heads = (
        '<th scope="col" colspan="2">Check</th><th scope="col" class="number">Measured</th>'
        '<th scope="col" class="number limit">Allowed</th><th scope="col">Of what is allowed</th>'
    )
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<table class="checks">{head}<tbody>{"".join(rows)}</tbody></table>'


def by_level(checks: Sequence[Check]) -> dict[Level, list[Check]]:
    """Return the checks of each level, the levels in the order of their first check."""
    levels = dict.fromkeys(check.level for check in checks)
    return {level: [check for check in checks if check.level == level] for level in levels}


def _group(title: str) -> str:
    return f'<tr class="group"><th scope="rowgroup" colspan="5">{html(title)}</th></tr>'


def _row(check: Check) -> str:
    mark = '<td class="mark ok">\u2713</td>' if check.passed else '<td class="mark bad">\u2717</td>'
    said = f"<small>{html(note_of(check))}</small>" if note_of(check) else ""
    measured, allowed = numbers_of(check)
    return (
        f'<tr>{mark}<th scope="row">{html(check.name)}{said}</th><td class="number">{measured}</td>'
        f'<td class="number limit">{allowed}</td><td class="draw">{_drawn(check)}</td></tr>'
    )


def _unproven(level: str, why: str) -> str:
    title = LEVELS.get(level, level)  # type: ignore[call-overload]
    return (
        f'<tr><td class="mark warn">\u2013</td><th scope="row" colspan="4">{html(title)}'
        f"<small>not shown: {html(why)}</small></th></tr>"
    )


def note_of(check: Check) -> str:
    """Return what a check found and where the worst value is, in plain text."""
    found = check.detail if check.passed else failed_sentence(check)
    is_named = not check.where or check.where in found
    return found if is_named else ", ".join(filter(None, (found, f"worst at {check.where}")))


def numbers_of(check: Check) -> tuple[str, str]:
    """Return what a check measured and what it allows, in words."""
    if check.tolerance == 0:
        differ = "none differ" if check.worst == 0 else f"{check.worst:g} differ"
        return (differ if isfinite(check.worst) else size(check.worst)), "none"
    least = "at least " if check.at_least else ""
    return size(check.worst), f"{least}{size(check.tolerance)}"


def _drawn(check: Check) -> str:
    if check.tolerance == 0 and check.passed:
        return ""
    kind, share = "ok" if check.passed else "bad", share_of(check)
    # Of what is needed, more is better: the bar is full where the check passes.
    filled = check.worst / check.tolerance if check.at_least and check.tolerance else share
    return f"{bar(filled, kind)}<small>{share_words(check)}</small>"


def share_words(check: Check) -> str:
    """Return the share of what a check allows in words; empty for a check of identity."""
    if check.tolerance == 0:
        return ""
    if check.at_least:
        return f"{times(check.worst / check.tolerance)} times what is needed"
    return of_allowed(share_of(check)).removesuffix(" of")
