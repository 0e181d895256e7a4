"""The verb parity: it runs a suite of merges that must hold, and returns its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.job.keywords import checked
from lora_export.suites.printing.written import Reports
from lora_export.suites.reading.read_suite import read_suite
from lora_export.suites.reading.update_suite import update_goldens
from lora_export.suites.running.run_row import Running
from lora_export.suites.running.run_suite import chosen_rows, run_suite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.records import Progress
    from lora_export.suites.outcome import Row, SuiteResult


@checked("parity")
def parity(
    suite: str | Path,
    *,
    case: Sequence[str] = (),
    junit: str | Path | None = None,
    report: str | Path | None = None,
    update: bool = False,
    no_cache: bool = False,
    keep: str | Path | None = None,
    exitfirst: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> SuiteResult:
    """Run a suite of merges that must hold, and return a row for each artefact of each case.

    A row that fails, or that is refused, raises nothing: its outcome is in the row. docs/ci.md
    shows the file.

    Example:
        Fail a release unless every merge of the suite is proven::

            result = parity("parity.toml", strict=True)
            assert result.passed, [row.cause for row in result.rows if not row.holds]

    Args:
        suite: the suite's TOML file. Its paths are relative to its own folder.
        case: run the cases alone whose names match one of these patterns.
        junit: write the rows into this file, as JUnit XML. Earlier JUnit XML there is replaced, any
            other file is not.
        report: write the rows into this file, as a page: .html or .md. An earlier report there is
            replaced, any other file is not.
        update: write the digests, errors and sizes that were found into the goldens.
        no_cache: run rows again that have passed with the same content.
        keep: keep the outputs in this folder, by case; None removes them.
        exitfirst: stop at the first row that does not hold.
        strict: fail where a case is skipped because an extra is missing.
        progress: called with each stage of each row. None reports nothing.
        on_row: called with each row that is done. None reports nothing.

    Returns:
        The rows, in the order of the suite. `passed` is whether all hold; `status` is the exit
        status of the command.

    Raises:
        UsageError: the file has mistakes, all of which are named; or `case` matches no case.
        InputError: there is no such file, or it is no text.
        OutputError: a report would replace a folder, the suite, a file that is no report, or the
            other report.
        StorageError: the suite cannot be read.
    """
    reports = Reports.at(junit, report, Path(suite))
    read = read_suite(Path(suite))
    rows = chosen_rows(read, tuple(case))
    running = Running(
        read,
        strict=strict,
        cached=not no_cache,
        keep=Path(keep) if keep else None,
        update=update_goldens if update else None,
        progress=progress,
        reports=tuple(Path(one) for one in (junit, report) if one),
    )
    result = run_suite(rows, running, first=exitfirst, on_row=on_row or _no_report)
    return reports.write(result)


def _no_report(_row: Row) -> None:
    """Report nothing."""
