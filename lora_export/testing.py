"""Assertions for the tests of others: that a merge is base + adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.errors import LoraExportError
    from lora_export.report.result import Report

MOST_LINES = 8
"""Lines of an assertion's text."""


def assert_merge_parity(
    base: str | Path,
    adapters: Sequence[str | Path] | str | Path,
    artefact: str | Path | None = None,
    **options: Any,
) -> Report:
    """Assert that a merge of `adapters` into `base` is right, and return the report of the proof.

    Example:
        Test what a script of yours has merged::

            def test_merge():
                assert_merge_parity("base", ["adapters/fr"], "release/model")

    Args:
        base: see `lora_export.merge`.
        adapters: the adapters, or the one adapter.
        artefact: what was merged, by lora-export or by another tool: it is verified. None merges
            into a temporary folder, which proves that base and adapters can be merged.
        options: keywords of `lora_export.verify`, or of `lora_export.merge` without an artefact.

    Returns:
        The report, whose checks have all passed.

    Raises:
        AssertionError: the merge is not right, an input was refused, or nothing was proven, as
            by `verify=False`. Its text has at most eight lines: the verdict, the cause, and what
            to do.
    """
    __tracebackhide__ = True
    from lora_export import api
    from lora_export.checkpoint.index import read_checkpoint
    from lora_export.errors import LoraExportError

    paths = [adapters] if isinstance(adapters, str | Path) else [*adapters]
    try:
        if artefact is not None:
            return _proven(api.verify(artefact, base=base, adapters=paths, **options))
        with tempfile.TemporaryDirectory(prefix="lora-export-") as folder:
            whole = read_checkpoint(Path(base)).layout == "folder"
            output = Path(folder, "merged" + ("" if whole else ".safetensors"))
            return _proven(api.merge(base, paths, output, **options))
    except LoraExportError as error:
        text = _text("verify" if artefact is not None else "merge", error)
    raise AssertionError(text)


def _proven(report: Report) -> Report:
    """Return a report that proves something.

    Raises:
        AssertionError: nothing was proven, so nothing is asserted: by verify=False, or dry_run.
    """
    __tracebackhide__ = True
    from lora_export.report.verdict import verdict

    found = verdict(report)
    if found is None or found.word != "PROVED":
        raise AssertionError(str(found))
    return report


def _text(command: str, error: LoraExportError) -> str:
    """Return the verdict of a refusal, where it comes from, and the problems or failed checks."""
    from lora_export.report.result import refused
    from lora_export.report.sentences import failed_sentence
    from lora_export.report.verdict import verdict

    report = refused(command, error)
    failed = [failed_sentence(check) for check in report.checks if not check.passed]
    found = failed or [str(problem) for problem in report.problems]
    lines = [str(verdict(report))]
    lines += [str(report.attribution)] if report.attribution else []
    lines += [line for text in found for line in text.splitlines()]
    lines = [line for line in lines if line.strip()]
    if len(lines) > MOST_LINES:
        left = len(lines) - MOST_LINES + 1
        lines = [*lines[: MOST_LINES - 1], f"... and {left} more lines"]
    return "\n".join(lines)
