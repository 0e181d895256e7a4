"""The sections of a report's page, in the order in which a reader asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.columns import counted
from lora_export.report.lowered import all_lowered, share_of_effect
from lora_export.report.modules import HEADING, module_cells, modules_title
from lora_export.report.page.escape import code, html
from lora_export.report.page.frame import Section
from lora_export.report.page.measures import measures_of, of_bytes
from lora_export.report.page.pictures.axis import axis_picture, axis_words
from lora_export.report.page.pictures.bars import Bar, bar_rows
from lora_export.report.page.pictures.heat_map import heat_map, size_words
from lora_export.report.page.pictures.module_grid import module_grid
from lora_export.report.page.provenance import provenance_html
from lora_export.report.page.tables import checks_table
from lora_export.report.probed import probed_sentence
from lora_export.report.sentences import after_refusal
from lora_export.report.survival import survival_words
from lora_export.report.verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.records import Finding, Problem
    from lora_export.report.page.provenance import Provenance
    from lora_export.report.result import Report

KINDS = {"PROVED": "ok", "REFUSED": "bad", "NOT PROVED": "warn", "STOPPED": "warn"}
"""The colour of a verdict by its word; all others only inform."""

_MUCH = 0.9
"""A smaller share of the update that is kept is worth a note; see report.survival."""

_EXAMPLES = 3
"""Names, and problems, that stand for all of them."""


MOST_MODULES = 100
"""Wrong modules that are listed."""

AS_PLANNED = "These are the adapter's updates as planned, and not what was found in the result."

_NO_PICTURE = "There is no picture: the weights are wrong, so no output was compared."


def verdict_block(report: Report) -> str:
    """Return the verdict and, of a refusal, its causes in words; empty for `inspect`."""
    found = verdict(report)
    if found is None:
        return ""
    causes = "".join(_causes(report, found.text))
    listed = f"<ul>{causes}</ul>" if causes else ""
    return (
        f'<section class="verdict {KINDS.get(found.word, "info")}" aria-label="Verdict">'
        f'<p class="word">{found.word}</p><p class="text">{html(found.text, 600)}</p>'
        f"{listed}</section>"
    )


def _causes(report: Report, said: str) -> Iterator[str]:
    """Yield the causes of a refusal as items of a list. said: the verdict's own text."""
    if report.attribution:
        yield f"<li>{html(report.attribution, 600)}</li>"
    yield from (_finding(finding, said) for finding in report.findings)
    if not report.findings:
        yield from (_problem(problem, said) for problem in report.problems[:_EXAMPLES])
        if more := len(report.problems) - _EXAMPLES:
            yield f"<li>and {counted(more, 'problem')} more</li>" if more > 0 else ""


def _finding(finding: Finding, said: str) -> str:
    names = ", ".join(code(name, 120) for name in finding.names[:_EXAMPLES])
    more = len(finding.names) - _EXAMPLES
    tail = f" and {more:,} more" if more > 0 else ""
    message = "" if finding.message == said and names else html(finding.message, 600)
    return f"<li>{message}{': ' if message and names else ''}{names}{tail}</li>"


def _problem(problem: Problem, said: str) -> str:
    message = "" if is_said(problem.message, said) else html(problem.message, 600)
    parts = [code(problem.where) if problem.where else "", message]
    hint = f'<span class="note">{html(problem.hint, 600)}</span>' if problem.hint else ""
    text = ": ".join(filter(None, parts))
    return f"<li>{'<br>'.join(filter(None, (text, hint)))}</li>" if text or hint else ""


def is_said(message: str, said: str) -> bool:
    """Return whether the verdict's text has the message of a problem already."""
    return said.startswith(message) or message.startswith(said)


def sections(report: Report, provenance: Provenance) -> tuple[Section, ...]:
    """Return all sections; those that have nothing to show have no body."""
    return (
        Section("proof", "The proof in one picture", _proof(report)),
        Section("modules", "Wrong modules", _modules(report)),
        Section("updates", "How large the update is", _updates(report)),
        Section("rounding", "What rounding left of the adapter", _rounding(report)),
        Section("sizes", "Sizes before and after", _sizes(report, provenance)),
        Section("samples", "What the models say", _samples(report)),
        Section("checks", "All checks", checks_table(report)),
        Section("warnings", "Warnings", _list(report.warnings)),
        Section("origin", "What it is made of", provenance_html(report, provenance)),
        Section("next", "Next", _next(report)),
    )


def _proof(report: Report) -> str:
    if found := measures_of(report):
        sizes = html(probed_sentence(report), 600)
        note = f'<p class="note">{sizes}</p>' if sizes else ""
        return f"{axis_picture(found)}<p>{html(axis_words(found), 600)}</p>{note}"
    if why := report.unproven.get("model"):
        text = f"No output was compared: {why}. The weights were, element by element: see below."
        return f"<p>{html(text, 600)}</p>"
    return f"<p>{_NO_PICTURE}</p>" if is_wrong(report) else ""


def is_wrong(report: Report) -> bool:
    """Return whether the weights are not the planned ones, so that no model was run on them."""
    return any(check.level == "weights" and not check.passed for check in report.checks)


def _modules(report: Report) -> str:
    modules = report.facts.get("modules", ())
    if not modules:
        return ""
    head = "".join(f'<th scope="col">{text}</th>' for text in HEADING)
    rows = (map(html, module_cells(row)[1:]) for row in modules[:MOST_MODULES])
    body = "".join(
        f'<tr><th scope="row">{code(row["module"], 120)}</th>'
        f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for row, cells in zip(modules, rows, strict=False)
    )
    more = len(modules) - MOST_MODULES
    tail = f'<p class="note">and {counted(more, "module")} more</p>' if more > 0 else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<p>{html(modules_title(modules))}</p>{table}{tail}"


def _next(report: Report) -> str:
    if report.next:
        return f"<pre>{code(report.next, 2000)}</pre>"
    after = after_refusal(report.problems) if report.problems else ""
    return f"<p>{html(after, 600)}</p>" if after else ""


def _updates(report: Report) -> str:
    grid = module_grid(report.facts.get("update_sizes", {}))
    if not grid.tensors:
        return ""
    planned = f"<p>{AS_PLANNED}</p>" if is_wrong(report) else ""
    return f"{planned}<p>{html(size_words(grid), 600)}</p>{heat_map(grid)}"


def _rounding(report: Report) -> str:
    entry = kept_entry(report)
    if entry is None:
        return ""
    rows = [Bar(f"update kept in {' and '.join(entry['dtypes'])}", *_kept(entry["share"]))]
    rows += [
        Bar(f"kept if stored in {name}", *_kept(share))
        for name, share in entry.get("otherwise", {}).items()
    ]
    if report.kept:
        rows.append(Bar(f"effect kept in {report.kept.output}", *_kept(report.kept.share)))
    rows.append(Bar("elements that moved", entry["moved"], _percent(entry["moved"]), "info"))
    note = f'<p class="note">{html(entry["note"], 600)}</p>' if entry["note"] else ""
    words = survival_words(entry)
    return f"<p>{html(words[:1].upper() + words[1:])}.</p>{bar_rows(_plain(rows))}{note}"


def kept_entry(report: Report) -> Mapping[str, Any] | None:
    """Return what storing left of the updates; None where it is not known.

    Of wrong weights it is not known: what is missing there is no rounding.
    """
    if is_wrong(report):
        return None
    entry: Mapping[str, Any] | None = report.facts.get("survival")
    return entry


def _kept(share: float) -> tuple[float, str, str]:
    return share, _percent(share), "ok" if share >= _MUCH else "limit"


def _percent(share: float) -> str:
    """Return a share in percent, with as many digits as show that it is not 100."""
    texts = (f"{100 * max(share, 0.0):.{digits}f} %" for digits in (1, 2, 3))
    return next((text for text in texts if not text.startswith("100.")), "100 %")


def _plain(rows: Sequence[Bar]) -> list[Bar]:
    """Return the rows with names that are words of ours, and not names from files."""
    return [Bar(row.name, row.share, row.value, row.kind, is_code=False) for row in rows]


def _sizes(report: Report, provenance: Provenance) -> str:
    rows = sizes(report, provenance)
    if len(rows) < 2:
        return ""
    largest = max(number for _, number, _ in rows) or 1
    bars = [Bar(name, number / largest, of_bytes(number), kind) for name, number, kind in rows]
    return f"{bar_rows(_plain(bars))}{_loss(report)}"


def sizes(report: Report, provenance: Provenance) -> list[tuple[str, int, str]]:
    """Return what there was and what there is as (name, bytes, class of the bar)."""
    base, adapter = provenance.bytes_of("base"), provenance.bytes_of("adapter")
    written = [(file.path, file.size) for file in report.files] or [*provenance.outputs]
    outputs = sum(number for name, number in written if not name.endswith("lora_export.json"))
    rows = [("base", base, "noise"), ("adapters", adapter, "effect")]
    if lowered := all_lowered(report.facts):
        rows.append(("ONNX in float32", int(lowered[0]["float32_bytes"]), "noise"))
        rows += [(f"ONNX in {one['precision']}", int(one["bytes"]), "info") for one in lowered]
    else:
        rows.append(("result", outputs, "info"))
    return [row for row in rows if row[1]]


def _loss(report: Report) -> str:
    """Return how far the outputs of a lower precision moved, as a table; empty without one."""
    lowered = all_lowered(report.facts)
    losses = [
        {**loss, "output": f"{one['precision']}: {loss['output']}"} if len(lowered) > 1 else loss
        for one in lowered
        for loss in one.get("loss", ())
    ]
    rows = [
        f'<tr><th scope="row">{code(each["output"])}</th>'
        f'<td class="number">{each["relative"]:.2%}</td>'
        f'<td class="number">{_of_effect(each)}</td>'
        f'<td class="number">{_agreement(each)}</td></tr>'
        for each in losses[:20]
    ]
    heads = ("Output", "Error of its size", "Of the effect", "Same arg-max")
    head = "".join(
        f'<th scope="col"{" class=number" if at else ""}>{text}</th>'
        for at, text in enumerate(heads)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<h3>What the lower precision costs</h3>{table}" if rows else ""


def _of_effect(loss: Mapping[str, Any]) -> str:
    share = share_of_effect(loss)
    return "no effect" if share is None else f"{share:.2%}"


def _agreement(loss: Mapping[str, Any]) -> str:
    return f"{loss['agree'] / loss['places']:.1%}" if loss["places"] else ""


def _samples(report: Report) -> str:
    found = report.facts.get("samples") or {}
    if why := found.get("why"):
        return f"<p>Not shown: {html(why)}.</p>"
    return "".join(map(_sample, found.get("rows", ())))


def _sample(row: Mapping[str, str]) -> str:
    said = (
        f"<dt>{side}</dt><dd><bdi>{html(row[side])}</bdi></dd>"
        for side in ("base", "unmerged", "merged")
    )
    asked = f'<dt class="asked"><bdi>{html(row["input"])}</bdi></dt>'
    return f'<dl class="samples">{asked}{"".join(said)}</dl>'


def _list(lines: Sequence[str]) -> str:
    items = [f"<li>{html(line, 600)}</li>" for line in lines[:100]]
    return f"<ul>{''.join(items)}</ul>" if items else ""
