"""The plug-in of pytest: `pytest --lora-parity SUITE.toml` collects the rows of a suite as tests.

pytest imports this module in every run of an environment that has lora-export, so that it imports
nothing else before a suite is asked for.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.suites.outcome import Row
    from lora_export.suites.suite import Asked, Suite

_OPTION = "lora_parity"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of parity suites."""
    group = parser.getgroup("lora-export", "parity suites of lora-export")
    group.addoption(
        "--lora-parity",
        dest=_OPTION,
        action="append",
        default=[],
        metavar="SUITE.toml",
        help="run the rows of this suite as tests, and nothing else unless paths are named",
    )
    group.addoption(
        "--lora-parity-no-cache",
        action="store_true",
        help="run rows again that have passed with the same content",
    )
    group.addoption(
        "--lora-parity-strict",
        action="store_true",
        help="fail where a case is skipped because an extra is missing",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the suites that are asked for; without paths on the command line, them alone."""
    suites = [str(_absolute(config, name)) for name in config.getoption(_OPTION)]
    if not suites:
        return
    given = config.args_source is pytest.Config.ArgsSource.ARGS
    named = config.args if given else []
    config.args[:] = [*named, *(suite for suite in suites if suite not in named)]


def _absolute(config: pytest.Config, name: str) -> Path:
    path = Path(name)
    return path if path.is_absolute() else Path(config.invocation_params.dir, path)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Return the collector of a suite; None for every other file."""
    suites = [_absolute(parent.config, name) for name in parent.config.getoption(_OPTION)]
    if any(path.resolve() == file_path.resolve() for path in suites):
        return SuiteFile.from_parent(parent, path=file_path)
    return None


class RowFailed(Exception):  # noqa: N818 - what has failed is the row, and this is no error of ours
    """A row does not hold; its text is the report."""


class SuiteFile(pytest.File):
    """The suite's file."""

    def collect(self) -> Iterator[RowItem]:
        """Yield the rows.

        Raises:
            CollectError: the file has mistakes; the text names all of them.
        """
        from lora_export.errors import LoraExportError
        from lora_export.suites.reading.read_suite import read_suite

        try:
            suite = read_suite(self.path)
        except LoraExportError as error:
            raise self.CollectError(str(error)) from None
        for case in suite.cases:
            for asked in case.rows():
                name = f"{case.name}[{asked.name}]"
                yield RowItem.from_parent(self, name=name, suite=suite, asked=asked)


class RowItem(pytest.Item):
    """One row as a test."""

    def __init__(self, *, suite: Suite, asked: Asked, **settings: Any) -> None:
        super().__init__(**settings)
        self.suite, self.asked = suite, asked

    def runtest(self) -> None:
        """Run the row.

        Raises:
            RowFailed: it does not hold.
        """
        row = self._run()
        self.user_properties += _properties(row)
        if row.outcome == "skipped":
            pytest.skip(row.cause)
        if not row.holds:
            from lora_export.suites.printing.rows_text import row_text

            raise RowFailed(row_text(row))

    def _run(self) -> Row:
        from lora_export.suites.running.run_row import Running, run_row
        from lora_export.suites.running.user_modules import modules_of_its_own

        running = Running(
            self.suite,
            strict=self.config.getoption("lora_parity_strict"),
            cached=not self.config.getoption("lora_parity_no_cache"),
        )
        with warnings.catch_warnings(), modules_of_its_own() as code:
            # Warnings of torch are no concern of the row, also where pytest makes them errors.
            warnings.simplefilter("ignore")
            return run_row(self.asked, running, code)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the report of a row that failed, without a traceback of ours."""
        if isinstance(excinfo.value, RowFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return file, line from 0, and name."""
        return self.path, self.asked.case.line - 1, self.name


def _properties(row: Row) -> list[tuple[str, object]]:
    """Return figures and digests, for junitxml."""
    found: list[tuple[str, object]] = [("outcome", row.outcome), ("cached", row.cached)]
    if row.verdict:
        found += [("verdict", str(row.verdict)), ("share", row.share)]
    files = row.report.files if row.report else ()
    return found + [(f"sha256:{file.path}", file.sha256) for file in files]
