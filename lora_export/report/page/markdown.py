"""A report as Markdown, for the comment on a pull request: the verdict and what decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.report.columns import counted
from lora_export.report.modules import HEADING, module_cells, modules_title
from lora_export.report.page.escape import markdown, markdown_code
from lora_export.report.page.frame import MARKDOWN_START
from lora_export.report.page.measures import measures_of, of_bytes, share_of_weight, size
from lora_export.report.page.pictures.axis import axis_words
from lora_export.report.page.pictures.heat_map import size_words
from lora_export.report.page.pictures.module_grid import module_grid
from lora_export.report.page.provenance import facts_of
from lora_export.report.page.sections import AS_PLANNED, is_said, is_wrong, kept_entry, sizes
from lora_export.report.page.tables import LEVELS, by_level, note_of, numbers_of, share_words
from lora_export.report.probed import probed_sentence
from lora_export.report.sentences import after_refusal
from lora_export.report.survival import survival_words
from lora_export.report.verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.records import Check
    from lora_export.report.page.provenance import Provenance
    from lora_export.report.result import Report

SIGNS = {
    "PROVED": "\u2705",
    "REFUSED": "\u274c",
    "NOT PROVED": "\u26a0\ufe0f",
    "STOPPED": "\u26a0\ufe0f",
}
"""Stands before a verdict; the word says the same."""

_EXAMPLES = 3
_ROWS = 24
_CHECKS = 100


def markdown_page(report: Report, provenance: Provenance) -> str:
    """Return the report as Markdown; see rendered.rendered."""
    blocks = [
        MARKDOWN_START,
        *_top(report),
        *_proof(report),
        *folded("Wrong modules", _modules(report)),
        *_updates(report),
        *_left(report, provenance),
        *_samples(report),
        *folded("All checks", _checks(report)),
        *_warnings(report),
        *folded("What it is made of", _origin(report, provenance)),
        *_next(report),
    ]
    return "\n\n".join(blocks) + "\n"


def verdict_line(report: Report) -> str:
    """Return the verdict of a report with its sign; empty for `inspect`."""
    found = verdict(report)
    if found is None:
        return ""
    return f"{SIGNS.get(found.word, '')} **{found.word}**: {markdown(found.text, 600)}".strip()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: str = "") -> str:
    """Return a table of escaped cells. numbers: "r" for each column that holds numbers."""
    lines = [f"| {' | '.join(heads)} |"]
    marks = [
        "---:" if at < len(numbers) and numbers[at] == "r" else "---" for at in range(len(heads))
    ]
    lines.append(f"|{'|'.join(marks)}|")
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def folded(title: str, body: str) -> list[str]:
    """Return a part that opens on a click; nothing without a body."""
    return [f"<details><summary>{title}</summary>", body, "</details>"] if body else []


def _top(report: Report) -> Iterator[str]:
    yield f"## lora-export {report.command}" + (
        f" {markdown_code(report.output, 120)}" if report.output else ""
    )
    if line := verdict_line(report):
        yield line
    found = verdict(report)
    if causes := "\n".join(_causes(report, found.text if found else "")):
        yield causes


def _causes(report: Report, said: str) -> Iterator[str]:
    if report.attribution:
        yield f"- {markdown(report.attribution, 600)}"
    for finding in report.findings:
        names = ", ".join(markdown_code(name, 120) for name in finding.names[:_EXAMPLES])
        more = len(finding.names) - _EXAMPLES
        tail = f" and {more:,} more" if more > 0 else ""
        yield f"- {markdown(finding.message, 600)}{': ' if names else ''}{names}{tail}"
    for problem in report.problems[:_EXAMPLES] if not report.findings else ():
        where = f"{markdown_code(problem.where)}: " if problem.where else ""
        hint = f" ({markdown(problem.hint, 600)})" if problem.hint else ""
        message = "" if is_said(problem.message, said) else markdown(problem.message, 600)
        if line := f"{where}{message}{hint}".strip():
            yield f"- {line}"


def _proof(report: Report) -> Iterator[str]:
    if found := measures_of(report):
        row = [size(each) for each in (found.noise, found.error, found.allowed, found.effect)]
        heads = ("rounding noise", "measured error", "allowed", "adapter's effect")
        words = f"{axis_words(found)} {probed_sentence(report)}".strip()
        yield f"{table(heads, [row], 'rrrr')}\n\n{markdown(words, 600)}"


def _modules(report: Report) -> str:
    modules = report.facts.get("modules", ())
    rows = []
    for name, *cells in map(module_cells, modules[:_CHECKS]):
        rows.append([markdown_code(name, 120), *map(markdown, cells)])
    return f"{markdown(modules_title(modules))}\n\n{table(HEADING, rows, ' rr')}" if rows else ""


def _next(report: Report) -> Iterator[str]:
    if report.next:
        yield f"Next: {markdown_code(report.next, 2000)}"
    elif report.problems and (after := after_refusal(report.problems)):
        yield f"Next: {markdown(after, 600)}"


def _updates(report: Report) -> Iterator[str]:
    grid = module_grid(report.facts.get("update_sizes", {}))
    if not grid.tensors:
        return
    planned = f"{AS_PLANNED} " if is_wrong(report) else ""
    yield f"### How large the update is\n\n{planned}{markdown(size_words(grid), 600)}"
    rows = []
    for kind in grid.kinds:
        shares = sorted(cell.share for cell in kind.cells.values())
        three = (shares[0], shares[len(shares) // 2], shares[-1])
        rows.append([markdown_code(kind.name, 64), str(len(shares)), *map(share_of_weight, three)])
    for name, cell in grid.others[: max(0, _ROWS - len(rows))]:
        rows.append([markdown_code(name, 64), "1", *[share_of_weight(cell.share)] * 3])
    heads = ("module", "layers", "smallest", "median", "largest")
    yield table(heads, rows[:_ROWS], " rrrr")


def _left(report: Report, provenance: Provenance) -> Iterator[str]:
    if entry := kept_entry(report):
        words = survival_words(entry)
        note = f" {markdown(entry['note'], 600)}" if entry["note"] else ""
        kept = (
            f" {markdown(report.kept)} (output {markdown_code(report.kept.output)})."
            if report.kept
            else ""
        )
        yield f"**Rounding:** {markdown(words)}.{kept}{note}"
    if rows := sizes(report, provenance):
        listed = ", ".join(f"{name} {of_bytes(number)}" for name, number, _ in rows)
        yield f"**Sizes:** {listed}"


def _samples(report: Report) -> Iterator[str]:
    found = report.facts.get("samples") or {}
    rows = [
        [markdown_code(row[key], 160) for key in ("input", "base", "unmerged", "merged")]
        for row in found.get("rows", ())
    ]
    if rows:
        yield "### What the models say"
        yield table(("input", "base", "unmerged", "merged"), rows)


def _checks(report: Report) -> str:
    rows = []
    for level, checks in by_level(report.checks[:_CHECKS]).items():
        rows.append(["", f"**{markdown(LEVELS.get(level, level))}**", "", "", ""])
        rows += map(_check_row, checks)
    for name, why in report.unproven.items():
        rows.append(["\u2013", f"{markdown(name)}: not shown, {markdown(why)}", "", "", ""])
    return table(("", "check", "measured", "allowed", "share"), rows, "  rrr") if rows else ""


def _check_row(check: Check) -> list[str]:
    said = note_of(check)
    name = markdown(check.name) + (f"<br><sub>{markdown(said)}</sub>" if said else "")
    sign = "\u2705" if check.passed else "\u274c"
    return [sign, name, *numbers_of(check), share_words(check)]


def _warnings(report: Report) -> Iterator[str]:
    if report.warnings:
        lines = [f"- {markdown(line, 600)}" for line in report.warnings[:50]]
        yield f"### {counted(len(report.warnings), 'warning')}\n\n" + "\n".join(lines)


def _origin(report: Report, provenance: Provenance) -> str:
    files = [
        [
            file.role,
            markdown_code(file.name),
            of_bytes(file.size),
            markdown_code(file.sha256) if file.sha256 else "not hashed",
        ]
        for file in provenance.inputs
    ]
    files += [
        ["written", markdown_code(file.path), of_bytes(file.size), markdown_code(file.sha256)]
        for file in report.files
    ]
    parts = [table(("", "file", "size", "SHA-256"), files, "  r")] if files else []
    lines = [f"- {name}: {markdown(text, 900)}" for name, text in facts_of(report, provenance)]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])
