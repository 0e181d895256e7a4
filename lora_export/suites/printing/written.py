"""The files that a run of a suite writes: JUnit XML, and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.page_file import PageFile
from lora_export.checkpoint.reading import system_errors
from lora_export.errors import OutputError
from lora_export.report.page.suite_page import Row as PageRow
from lora_export.report.page.suite_page import rendered_suite
from lora_export.suites.printing.junit import junit_xml
from lora_export.suites.printing.rows_text import short_verdict, suite_verdict

if TYPE_CHECKING:
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
        if junit and (Path(junit).is_dir() or Path(junit).resolve() == suite.resolve()):
            what = "is a folder" if Path(junit).is_dir() else "is the suite itself"
            raise OutputError(
                what, where=f"--junit {junit}", hint="name another file", cause="output/place"
            )
        if junit and not Path(junit).parent.is_dir():
            raise OutputError(
                "its folder does not exist", where=f"--junit {junit}", cause="output/place"
            )
        found = PageFile.at(page, inputs=(suite,)) if page else None
        return cls(Path(junit) if junit else None, found)

    def write(self, result: SuiteResult) -> None:
        """Write the reports that are asked for.

        Raises:
            OutputError: another file has appeared in the place of the page.
            StorageError: the system refuses.
        """
        if self.junit:
            with system_errors(self.junit, "write"):
                self.junit.write_bytes(junit_xml(result))
        if self.page:
            rows = [page_row(row) for row in result.rows]
            title = f"lora-export parity: {result.path.name}"
            self.page.write(rendered_suite(title, suite_verdict(result), rows, self.page.form))


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
