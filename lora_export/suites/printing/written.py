"""The files that a run of a suite writes: JUnit XML, and a page."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.page_file import PageFile
from lora_export.checkpoint.reading import read_start
from lora_export.errors import LoraExportError, OutputError
from lora_export.report.page.suite_page import Row as PageRow
from lora_export.report.page.suite_page import rendered_suite
from lora_export.suites.printing.junit import junit_xml
from lora_export.suites.printing.rows_text import short_verdict, suite_verdict
from lora_export.suites.reading.update_suite import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_export.suites.outcome import Row, SuiteResult


@dataclass(frozen=True, slots=True)
class Reports:
    """Where the reports of a run go; the places are free, or hold earlier reports."""

    junit: Path | None
    page: PageFile | None

    @classmethod
    def at(cls, junit: str | Path | None, page: str | Path | None, suite: Path) -> Reports:
        """Check the places of reports before anything runs.

        Raises:
            UsageError: the page's ending is of no known form.
            OutputError: a report would replace a folder, the suite, or what is no report; or its
                folder does not exist.
        """
        if junit:
            _check_junit(Path(junit), suite)
        if junit and page and _place(Path(junit)) == _place(Path(page)):
            raise OutputError(
                "is the file of --report too", where=f"--junit {junit}", hint="name another file",
                cause="output/place",
            )  # fmt: skip
        found = PageFile.at(page, inputs=(suite,)) if page else None
        return cls(Path(junit) if junit else None, found)

    def write(self, result: SuiteResult) -> SuiteResult:
        """Write the reports that are asked for; return the result with those that were lost.

        A report that cannot be written hides no row: its reason is in `unwritten`.
        """
        lost = [*_lost(lambda: self._write_junit(result)), *_lost(lambda: self._write_page(result))]
        return replace(result, unwritten=tuple(lost))

    def _write_junit(self, result: SuiteResult) -> None:
        if self.junit:
            replace_file(self.junit, junit_xml(result).decode())

    def _write_page(self, result: SuiteResult) -> None:
        if self.page:
            rows = [page_row(row) for row in result.rows]
            title = f"lora-export parity: {result.path.name}"
            self.page.write(rendered_suite(title, suite_verdict(result), rows, self.page.form))


def _lost(write: Callable[[], None]) -> Iterator[str]:
    try:
        write()
    except (LoraExportError, OSError) as error:
        problem = error.problems[0] if isinstance(error, LoraExportError) else None
        yield f"{problem.where}: {problem.message}" if problem else str(error)


def _place(path: Path) -> Path:
    return path.parent.resolve() / path.name


def _check_junit(path: Path, suite: Path) -> None:
    """Refuse a place that holds what is no JUnit XML, or that cannot be written.

    Raises:
        OutputError: it does.
        StorageError: the file there cannot be read.
    """
    place = f"--junit {path}"
    if os.path.lexists(path) and not _is_junit(path):
        what = "is the suite itself" if path.resolve() == suite.resolve() else "is no JUnit XML"
        what = "is a folder" if path.is_dir() else what
        raise OutputError(what, where=place, hint="name another file", cause="output/place")
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", where=place, cause="output/place")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError("its folder is not writable", where=place, cause="output/place")


def _is_junit(path: Path) -> bool:
    """Return whether a regular file begins as JUnit XML does."""
    if path.is_symlink() or not path.is_file():
        return False
    start = read_start(path, 4096)
    return start.startswith(b"<?xml") and b"<testsuite" in start


def page_row(row: Row) -> PageRow:
    """Return a row as the page shows it; of a cached one the verdict alone is known."""
    known = row.verdict.text if row.verdict else ""
    expected = short_verdict(row).partition(", ")[2]
    notes = [row.cause if row.cause != known else "", expected, "cached" if row.cached else ""]
    return PageRow(
        f"{row.case}, {row.artefact}",
        None if row.cached else row.report,
        None if row.outcome == "skipped" else row.holds,
        "; ".join(filter(None, notes)),
        None if row.cached or row.outcome == "skipped" else row.seconds,
        row.command,
        row.verdict,
    )
