"""What GitHub's actions show of a suite: a summary of the step, and annotations of its lines.

Both are written by themselves where GitHub's variables are set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.shown import shown, shown_lines
from lora_export.suites.printing.rows_text import WORDS
from lora_export.suites.printing.suite_markdown import suite_markdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.suites.outcome import SuiteResult

MOST = 10
"""Annotations of errors that GitHub shows for one step."""
MOST_BYTES = 1_000_000
"""Bytes of a summary; GitHub refuses more than 1 MiB."""


def write_summary(result: SuiteResult, environment: Mapping[str, str] = os.environ) -> str:
    """Add the rows to the step's summary, where there is one; return why it could not be written.

    The file may hold summaries of earlier commands of the step; all share GitHub's limit.
    """
    if not (named := environment.get("GITHUB_STEP_SUMMARY")):
        return ""
    path = Path(named)
    try:
        before = path.stat().st_size if path.exists() else 0
        text = suite_markdown(result, most=max(MOST_BYTES - before, 2000))
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{text}\n")
    except OSError as error:
        return f"the summary of the step could not be written: {error.strerror}"
    return ""


def row_annotations(
    result: SuiteResult, environment: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """Yield GitHub's workflow commands for the first rows that do not hold; none elsewhere."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    wrong = [row for row in result.rows if not row.holds]
    file = _in_repository(result.path, environment.get("GITHUB_WORKSPACE", ""))
    for row in wrong[:MOST]:
        title = _property(f"{row.case}, {row.artefact}: {WORDS[row.outcome]}")
        place = f"file={_property(file)},line={row.line},title={title}"
        yield f"::error {place}::{_data(_message(row.cause, row.command))}"


def _message(cause: str, command: str) -> str:
    return shown_lines([cause, f"$ {command}"] if command else [cause])


def _in_repository(path: Path, workspace: str) -> str:
    whole = path.absolute()
    return (
        str(whole.relative_to(workspace))
        if workspace and whole.is_relative_to(workspace)
        else str(path)
    )


def _data(text: str) -> str:
    """Return the message of a workflow command, escaped as GitHub's toolkit does."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(shown(text)).replace(":", "%3A").replace(",", "%2C")
