"""A report in a notebook: its verdict and picture, without the page around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.columns import counted
from lora_export.report.page.escape import clean, code, html
from lora_export.report.page.measures import measures_of, size
from lora_export.report.page.sections import KINDS
from lora_export.report.page.style import fragment_style
from lora_export.report.verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.report.result import Report

_PLACE = ".lora-export-report"


def short_repr(report: Report) -> str:
    """Return the report in one or two lines: command, output, counts, verdict."""
    head = ", ".join((f"command={report.command!r}", f"output={clean(report.output)!r}"))
    found = str(verdict(report) or _found_words(report.facts.get("found", {})))
    line = f"\n  {clean(found, 600)}" if found else ""
    return f"<Report {head}, {_counts(report)}>{line}"


def _found_words(found: Mapping[str, Any]) -> str:
    """Return in a line what an inspection found; empty for another command."""
    if not found:
        return ""
    base = found.get("base", {}).get("name")
    counts = [
        counted(len(value) if isinstance(value, list) else value, name[:-1])
        for name in ("modules", "tensors", "nodes")
        if isinstance(value := found.get(name), list | int)
    ]
    parts = [found.get("dialect"), *counts, base and f"base {base}"]
    return f"{found['kind']} {found['path']}: {', '.join(part for part in parts if part)}"


def _counts(report: Report) -> str:
    failed = sum(not check.passed for check in report.checks)
    parts = [counted(len(report.checks), "check") + (f" ({failed:,} failed)" if failed else "")]
    parts += [counted(len(report.plan.changed()), "changed tensor")] if report.plan else []
    parts += [counted(len(report.files), "file")] if report.files else []
    parts += [counted(len(report.warnings), "warning")] if report.warnings else []
    return ", ".join(parts)


def fragment(report: Report) -> str:
    """Return the report as HTML to stand inside of another page; it has no script."""
    found = verdict(report)
    kind = KINDS.get(found.word, "info") if found else "info"
    lines = (
        [f'<p><span class="word">{found.word}</span> {html(found.text, 600)}</p>'] if found else []
    )
    if words := _found_words(report.facts.get("found", {})):
        lines.append(f"<p>{html(words, 600)}</p>")
    lines += [f"<p>{code(report.command)} {code(report.output)}</p>"] if report.output else []
    if measured := measures_of(report):
        sizes = (
            f"noise {size(measured.noise)} \u00b7 error {size(measured.error)} \u00b7 "
            f"allowed {size(measured.allowed)} \u00b7 effect {size(measured.effect)}"
        )
        lines.append(f'<p class="note">{html(sizes)}</p>')
    lines.append(f'<p class="note">{html(_counts(report))}</p>')
    return (
        f"<style>{fragment_style(_PLACE)}</style>"
        f'<div class="{_PLACE[1:]}" style="--mark:var(--{kind})">{"".join(lines)}</div>'
    )
