"""The outcome of a command for a person at a terminal."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from lora_export.report.columns import aligned, counted
from lora_export.report.found import found_text
from lora_export.report.result import tensor_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import Adapter, Check, Delta, MergePlan, Step
    from lora_export.report.result import Report

_SHOWN = 8
_NAMED = 3


_KEPT = "\n  captured by an earlier run (--no-capture-cache captures it anew)"


def report_text(report: Report, *, verbose: bool) -> str:
    """The whole summary; with `verbose` every module is listed, else the first few."""
    parts = []
    if report.plan:
        folder = report.command != "onnx"
        parts.append(plan_text(report.plan, verbose=verbose, with_edits=folder))
    if report.checks:
        parts.append(checks_text(report.checks, verbose=verbose))
    single = {"the graph": report.facts["graph"]} if report.facts.get("graph") else {}
    for name, graph in (single or report.facts.get("graphs") or {}).items():
        parts.append(
            f"zero overhead: {name} is the base's own, {graph['nodes']} nodes, "
            f"{graph['initializers']} initializers, hash {graph['hash'][:12]}"
            f"{_KEPT if graph.get('capture') == 'cached' else ''}"
        )
    if found := report.facts.get("found"):
        parts.append(found_text(found, verbose=verbose))
    if report.files:
        lines = [f"  {f.path}  {f.size:,} bytes  sha256 {f.sha256[:16]}" for f in report.files]
        parts.append("\n".join([f"wrote {report.output}", *lines]))
    if report.dry_run:
        parts.append(f"dry run: nothing was written{_space_text(report.facts.get('space'))}")
    return "\n\n".join(parts)


def _space_text(space: Mapping[str, Any] | None) -> str:
    if space is None:
        return ""
    free = "" if space["free"] is None else f", of {space['free']:,} that are free there"
    memory = f"about {space['memory'] // 10**6:,} MB of memory beside Python and torch"
    return f"; it takes {space['needed']:,} bytes{free}, and {memory}"


def first_names(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def plan_text(plan: MergePlan, *, verbose: bool, with_edits: bool = True) -> str:
    """What is merged into what, with the facts used for each module.

    with_edits: the files around the weights are written as well.
    """
    counts = tensor_counts(plan)
    deltas = [delta for step in plan.steps() for delta in step.deltas]
    whole = [step for step in plan.changed() if not step.deltas]
    changes = f"{counts['changed']} change, {counts['added']} are new"
    head = [f"base     {plan.base.root}: {counts['total']} tensors, {changes}"]
    head += [
        f"adapter  {adapter.path}: {adapter.dialect}, {counted(len(adapter.updates), 'module')}"
        + _full_tensors(adapter)
        + (f", weight {adapter.weight:g}" if adapter.weight != 1 else "")
        for adapter in plan.adapters
    ]
    if plan.unmatched:
        head.append(f"left out {len(plan.unmatched)} tensors: {first_names(plan.unmatched)}")
    rows = [_delta_row(delta) for delta in deltas] + [_whole_row(step) for step in whole]
    table = aligned(rows if verbose else rows[:_SHOWN])
    if len(rows) > _SHOWN and not verbose:
        table.append(f"  ... and {len(rows) - _SHOWN} more (-v lists them)")
    edited = plan.edits().items() if with_edits else ()
    edits = [f"{name}: {'; '.join(told)}" for name, told in edited]
    return "\n".join([*head, *table, *(f"  {line}" for line in [*plan.choices, *edits])])


def _full_tensors(adapter: Adapter) -> str:
    """Those that take the place of the base's, where there are any."""
    number = len(adapter.replacements)
    return f", {counted(number, 'full tensor')} in place of the base's" if number else ""


def _delta_row(delta: Delta) -> Sequence[str]:
    blocks = ",".join(str(int(block)) for block in delta.enable_lora)
    return (
        delta.module or "(root)",
        delta.kind + (" (in, out)" if delta.fan_in_fan_out else ""),
        f"r={delta.rank}",
        f"alpha={delta.alpha:g}",
        f"scaling={delta.scaling:g}",
        f"enable_lora={blocks}" if blocks else "",
    )


def _whole_row(step: Step) -> Sequence[str]:
    return (step.out.name, "added" if step.action == "add" else "replaced", step.reason, "", "", "")


def checks_text(checks: Sequence[Check], *, verbose: bool = False) -> str:
    """One line a check: outcome, what was seen, what was allowed, how much room was left.

    With `verbose`, or for a failed check, where the tolerance comes from as well.
    """
    rows = [
        (
            "ok" if check.passed else "FAILED",
            check.name,
            _measure(check),
            check.detail if verbose or not check.passed else check.detail.partition("; ")[0],
        )
        for check in checks
    ]
    return "\n".join(["checks", *aligned(rows)])


def _measure(check: Check) -> str:
    if check.tolerance == 0:
        return "none differ" if check.worst == 0 else f"{check.worst:g} differ at {check.where}"
    worst = f"{check.worst:.2g}" if isfinite(check.worst) else str(check.worst)
    if check.at_least:
        return f"{worst}, {check.tolerance:.2g} needed"
    return f"{worst} of {check.tolerance:.2g} allowed"
