"""Run the rows of a suite, one after the other, until all are done or something stops them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.interrupts import orderly_interrupts
from lora_export.errors import UsageError
from lora_export.suites.outcome import SuiteResult
from lora_export.suites.running.run_row import TERMINATED, run_row
from lora_export.suites.running.user_modules import modules_of_its_own
from lora_export.suites.suite import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_export.suites.outcome import Row
    from lora_export.suites.running.run_row import Running
    from lora_export.suites.suite import Asked, Suite

INTERRUPTED = 130


def chosen_rows(suite: Suite, globs: Sequence[str]) -> list[Asked]:
    """Return the rows of the cases whose names match one of `globs`; all where there is none.

    Raises:
        UsageError: a glob matches no case.
    """
    names = [case.name for case in suite.cases]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UsageError(f"no case has the name {glob!r}", where="--case",
                             hint=nearest(glob, names), cause="usage/unknown-name")  # fmt: skip
    chosen = [
        case
        for case in suite.cases
        if not globs or any(fnmatchcase(case.name, glob) for glob in globs)
    ]
    return [asked for case in chosen for asked in case.rows()]


def run_suite(
    rows: Sequence[Asked], running: Running, *, first: bool, on_row: Callable[[Row], None]
) -> SuiteResult:
    """Run rows and return what came out.

    Args:
        rows: in the order in which they are run.
        running: how.
        first: whether the first row that does not hold is the last one.
        on_row: called with each row that is done.
    """
    done: list[Row] = []
    stopped = 0
    try:
        with orderly_interrupts():
            for row in _each(rows, running):
                done.append(row)
                on_row(row)
                if first and not row.holds:
                    break
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except SystemExit as error:
        if error.code != TERMINATED:
            raise
        stopped = TERMINATED
    return SuiteResult(running.suite.path, tuple(done), len(rows) - len(done), stopped)


def _each(rows: Sequence[Asked], running: Running) -> Iterator[Row]:
    """Yield each row as it is done; the rows of one case share the modules of its --model."""
    for _, group in groupby(rows, key=lambda asked: asked.case.place):
        with modules_of_its_own() as code:
            for asked in group:
                yield run_row(asked, running, code)
