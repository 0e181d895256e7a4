"""Judge a row: whether what its command found is what the case expects."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.report.columns import first_names
from lora_export.report.lowered import all_lowered
from lora_export.report.verdict import levels_json, verdict
from lora_export.suites.running.goldens import differing, digested

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.records import Level
    from lora_export.report.result import Report
    from lora_export.report.verdict import Verdict
    from lora_export.suites.outcome import Outcome
    from lora_export.suites.running.content_key import Digests
    from lora_export.suites.suite import Asked

OUTPUTS: tuple[Level, ...] = ("model", "runtime")
"""The levels whose errors are distances between outputs."""

FAILED = 5


@dataclass(frozen=True, slots=True)
class Judged:
    """What a row is worth."""

    outcome: Outcome
    cause: str = ""
    """"" where it holds."""


def judge(asked: Asked, report: Report, status: int, digests: Digests) -> Judged:
    """Return the outcome of a row.

    Args:
        asked: the row.
        report: what its command found, also where it refused.
        status: the exit status of the command.
        digests: of the files on disk.

    Raises:
        InputError: a golden cannot be parsed.
        OSError, StorageError: a file cannot be read.
    """
    expect = asked.case.expect
    cause = verdict(report)
    if status != expect.exit:
        text = cause.text if cause else ""
        if not expect.exit:
            return Judged("failed" if status == FAILED else "error", text)
        found = "was accepted" if status == 0 else f"gave exit status {status} ({text})"
        return Judged("failed", f"{found}; exit status {expect.exit} is expected")
    if status:
        return _refused_for(expect.cause, report, cause.text if cause else "")
    wrong = [
        *_unproven(report, cause),
        *_levels(asked, report),
        *_goldens(asked, report, digests),
    ]
    return Judged("failed", "; ".join(wrong)) if wrong else Judged("held")


def holds_without_goldens(asked: Asked, report: Report, status: int, digests: Digests) -> bool:
    """Return whether a row meets all that no golden decides, so that goldens may be written."""
    expect = asked.case.expect
    bound = None if expect.max_error is None else math.inf
    bare = replace(expect, sha256=None, size_below=None, max_error=bound)
    bared = replace(asked, case=replace(asked.case, expect=bare))
    return status == 0 and judge(bared, report, status, digests).outcome == "held"


def _refused_for(wanted: str, report: Report, text: str) -> Judged:
    codes = [finding.code for finding in report.findings]
    codes += [problem.cause for problem in report.problems]
    texts = [text, *(problem.message for problem in report.problems)]
    if not wanted or wanted in codes or any(wanted.lower() in one.lower() for one in texts):
        return Judged("held")
    return Judged("failed", f"was refused for another cause than {wanted!r}: {text}")


def _unproven(report: Report, found: Verdict | None) -> Iterator[str]:
    """Yield why a result is none that was proven, now or when it was written."""
    if found is None or found.word not in ("PROVED", "UNCHANGED"):
        yield f"nothing was proven: {found.text}" if found else "nothing was proven"
    recorded = report.facts.get("recorded")  # of an artefact alone
    if recorded is not None and recorded["passed"] is not True:
        what = "no proof" if recorded["passed"] is None else "a failed proof"
        yield f"its manifest records {what}; name base and adapters, and it is proven now"


def _levels(asked: Asked, report: Report) -> Iterator[str]:
    """Yield the required levels of the proof that are not proven, with the reason."""
    levels = levels_json(report.checks, report.unproven)
    for level in asked.case.require:
        found = levels.get(level, {"proven": False})
        if not found["proven"]:
            why = found.get("why", f"{asked.verb} has no such level")
            yield f"level {level} is required and was not proven: {why}"


def _goldens(asked: Asked, report: Report, digests: Digests) -> Iterator[str]:
    expect = asked.case.expect
    if expect.max_error is not None:
        error = worst_error(report)
        if error is None:
            yield "max_error is expected, and no outputs were compared"
        elif not error <= expect.max_error:  # NaN is no small error
            yield f"the outputs' error is {error:.3g}, and max_error is {expect.max_error:g}"
    if expect.sha256 is None and expect.size_below is None:
        return
    files = digested(asked, report, digests)
    size = sum(file.size for file in files.values())
    if expect.size_below is not None and size >= expect.size_below:
        yield f"the files have {size:,} bytes, and size_below is {expect.size_below:,}"
    if expect.sha256 is not None and (found := differing(asked, expect.sha256, files)):
        yield first_names(found, 2)


def worst_error(report: Report) -> float | None:
    """Return the largest distance of an output, in its own unit; None where none was measured.

    Of a lower precision the outputs' distances are facts: what is checked of them are shares. A
    report without these facts, as of a pass, has none for such a row.
    """
    lowered = any(check.level == "precision" for check in report.checks)
    losses = [loss for one in all_lowered(report.facts) for loss in one.get("loss", ())]
    if lowered and not losses:
        return None
    compared = (c for c in report.checks if c.level in OUTPUTS)
    errors = [c.worst for c in compared if c.tolerance > 0 and not c.at_least]
    errors += [loss["worst"] for loss in losses]
    return next((e for e in errors if math.isnan(e)), max(errors, default=None))
