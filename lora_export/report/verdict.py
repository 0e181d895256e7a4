"""The verdict of a command in one line: what every report begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_export.report.result import levels_json
from lora_export.report.sentences import failed_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Check, Level
    from lora_export.report.result import Report

Word = Literal["PROVED", "NOT PROVED", "UNCHANGED", "PLANNED", "RESTORED", "REFUSED"]
"""What came out. UNCHANGED: only digests were compared, and all are those of the manifest."""

_LEVELS: dict[str, str] = {
    "manifest": "files",
    "weights": "weights",
    "model": "outputs",
    "file": "ONNX graph",
    "runtime": "ONNX Runtime",
    "precision": "precision",
}
"""What is compared at each level, in a word or two."""

_OUTPUTS: tuple[Level, ...] = ("model", "runtime")
"""The levels whose errors say most. An element's rounding alone is always near what it may be."""


_LEAST = 0.1
"""The smallest percentage that is shown as a number."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a command in one line."""

    word: Word
    text: str
    """What was proven, and how tightly; or the cause of a refusal."""
    share: float | None = None
    """The worst error as a share of what is allowed; None where no error was measured."""

    def __str__(self) -> str:
        return f"{self.word}: {self.text}"


def verdict(report: Report) -> Verdict | None:
    """Return the verdict of a report; None for `inspect`, which judges nothing."""
    if report.problems or report.passed is False:
        return Verdict("REFUSED", _cause(report), worst_share(report.checks))
    if report.command == "inspect":
        return None
    return _unproven(report) or _proved(report)


def verdict_json(report: Report) -> dict[str, Any] | None:
    """Return the verdict as --json and the manifest hold it; None where there is none."""
    if found := verdict(report):
        return {"word": found.word, "text": found.text, "share": found.share}
    return None


def _unproven(report: Report) -> Verdict | None:
    """Return the verdict of a command that proved nothing about a merge; None for all others."""
    if report.dry_run:
        return Verdict("PLANNED", "nothing was written")
    if report.command == "unmerge":
        return Verdict("RESTORED", "the base, byte for byte")
    if not report.checks:
        return Verdict("NOT PROVED", "merged without a proof (--no-verify)")
    if report.plan is None:
        text = "the files have the digests of the manifest; nothing was computed again"
        return Verdict("UNCHANGED", text)
    return None


def _proved(report: Report) -> Verdict:
    share = worst_share(report.checks)
    levels = levels_json(report.checks, report.unproven)
    proven = ", ".join(_LEVELS[level] for level, found in levels.items() if found["proven"])
    tight = "" if share is None else f", to {percent(share)} of the allowed error"
    return Verdict("PROVED", f"merged = base + adapter{tight} ({proven})", share)


def _cause(report: Report) -> str:
    """Return why it was refused: the mistake that was found, else what failed first."""
    if report.findings:
        return report.findings[0].message
    failed = [check for check in report.checks if not check.passed]
    if failed:
        return failed_sentence(failed[0])
    return report.problems[0].message


def worst_share(checks: Sequence[Check]) -> float | None:
    """Return the worst error as a share of what is allowed; None where none was measured.

    Errors of outputs are taken where there are any, else those of weights.
    """
    measured = [check for check in checks if check.tolerance > 0 and not check.at_least]
    outputs = [check for check in measured if check.level in _OUTPUTS]
    failed = [check for check in measured if not check.passed]
    return max((share_of(check) for check in failed or outputs or measured), default=None)


def share_of(check: Check) -> float:
    """Return how much of what a check allows was measured: above 1 where the check failed."""
    if check.at_least:
        return check.tolerance / check.worst if check.worst else float("inf")
    if check.tolerance:
        return check.worst / check.tolerance
    return float("inf") if check.worst else 0.0


def percent(share: float) -> str:
    """Return a share in percent with at most two digits that count: `6 %`, `0.4 %`, `1,200 %`."""
    value = 100 * share
    if 0 < value < _LEAST:
        return f"less than {_LEAST:g} %"
    rounded = float(f"{value:.1g}") if value < 10 else round(value)
    return f"{rounded:,.{0 if rounded >= 1 else 1}f} %"
