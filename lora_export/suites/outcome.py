"""What came out of a suite: rows as values, and the exit status of all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_export.report.document import verification_json

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.report.result import Report
    from lora_export.report.verdict import Verdict

Outcome = Literal["held", "failed", "error", "bug", "skipped"]
"""failed: the proof or an expectation failed. error: the command refused. bug: of lora-export."""

BUG = 1
FAILED = 5
UNWRITTEN = 7


@dataclass(frozen=True, slots=True)
class Row:
    """One artefact of one case, and what was found."""

    case: str
    """The name of the case."""
    artefact: str
    """`merge`, `onnx`, `onnx:int8`, or the path of what was verified, as the suite has it."""
    line: int
    """The line of the case in the suite."""
    outcome: Outcome
    status: int = 0
    """The exit status of the row's command; 0 where it was not run."""
    verdict: Verdict | None = None
    """None where nothing was run, or where lora-export has a bug."""
    cause: str = ""
    """Why the row does not hold, or why it was skipped; "" where it holds."""
    seconds: float = 0.0
    """How long it took; of a cached row, when it was run."""
    command: str = ""
    """The command that repeats it, quoted for a shell."""
    report: Report | None = None
    """What the command found; of a cached row without the plan."""
    cached: bool = False
    """Whether an earlier run of the same content has passed, and nothing was run."""
    traceback: str = ""
    """Of a bug."""

    @property
    def holds(self) -> bool:
        """Return whether nothing is wrong: a skipped row holds."""
        return self.outcome in ("held", "skipped")

    @property
    def share(self) -> float | None:
        """Return the worst error as a share of what is allowed; None where none was measured."""
        return self.verdict.share if self.verdict else None


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The rows of a suite, in its order."""

    path: Path
    """The suite's file."""
    rows: tuple[Row, ...]
    left: int = 0
    """Rows that were not run, after an interrupt or the first row that does not hold."""
    stopped: int = 0
    """130 or 143 where a signal stopped the run, else 0."""
    unwritten: tuple[str, ...] = ()
    """The reports that could not be written, each with the reason."""

    @property
    def passed(self) -> bool:
        """Return whether every row holds and none was left out by a stop."""
        return self.status in (0, UNWRITTEN) and all(row.holds for row in self.rows)

    @property
    def status(self) -> int:
        """Return the exit status.

        The first of these that is true: 130 or 143 after a signal, 1 for a bug in a row, 5 where a
        row fails, the highest status of the refusals, 7 where a report could not be written, 0.
        """
        if self.stopped:
            return self.stopped
        outcomes = Counter(row.outcome for row in self.rows)
        if outcomes["bug"]:
            return BUG
        if outcomes["failed"]:
            return FAILED
        refused = max((row.status for row in self.rows if row.outcome == "error"), default=0)
        return refused or (UNWRITTEN if self.unwritten else 0)


def row_json(row: Row) -> dict[str, Any]:
    """Return a row as --json has it."""
    verdict, report = row.verdict, row.report
    return {
        "case": row.case,
        "artefact": row.artefact,
        "line": row.line,
        "outcome": row.outcome,
        "status": row.status,
        "verdict": {"word": verdict.word, "text": verdict.text, "share": verdict.share}
        if verdict
        else None,
        "cause": row.cause,
        "seconds": round(row.seconds, 3),
        "cached": row.cached,
        "command": row.command,
        "verification": verification_json(report.checks, report.attribution)
        if report and report.checks
        else None,
        "files": {file.path: {"sha256": file.sha256, "bytes": file.size} for file in report.files}
        if report
        else {},
        "warnings": list(report.warnings) if report else [],
    }


def suite_json(result: SuiteResult) -> dict[str, Any]:
    """Return what `parity --json` prints for a suite that was run."""
    return {
        "command": "parity",
        "ok": result.status == 0,
        "output": str(result.path),
        "status": result.status,
        "rows": [row_json(row) for row in result.rows],
        "left": result.left,
        "error": None,
    }
