"""The outcome of a command as text for a terminal."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from lora_export.report.columns import aligned, counted, first_names, first_rows
from lora_export.report.found import found_text
from lora_export.report.lowered import lowered_text
from lora_export.report.result import levels_json, tensor_counts
from lora_export.report.survival import survival_text
from lora_export.report.verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.records import Adapter, Check, Delta, Level, MergePlan, Step
    from lora_export.report.result import Report

_COMPARED: dict[Level, str] = {
    "": "others",
    "manifest": "files: with the manifest and the plan",
    "weights": "weights: each tensor, read back from disk, with its recomputation in float64",
    "model": "model: outputs of the merged torch model with the unmerged one's",
    "file": "file: the graph and its weights with the base's graph and the merged weights",
    "runtime": "runtime: outputs of ONNX Runtime with the torch models'",
    "precision": "precision: the lower file, its weights and its outputs, with the float32 graph's",
}
"""What is compared at each level."""


_KEPT = "\n  captured by an earlier run (--no-capture-cache captures it anew)"

_MAPPED = (
    "ONNX Runtime ran on the weights in their mapped files, without its copies of them in the "
    "order of its kernels: they take 1 GiB or more"
)


def report_text(report: Report, *, verbose: bool) -> str:
    """Return the whole summary; `verbose` lists every module, and not only the first ones."""
    found = verdict(report)
    parts = [str(found)] if found else []
    parts += [levels_text(report)] if report.checks else []
    if report.plan:
        weights = report.facts.keys().isdisjoint({"graph", "graphs", "lowered"})
        edits = weights and report.command != "onnx"
        parts.append(plan_text(report.plan, verbose=verbose, with_edits=edits))
    parts += _proof_text(report, verbose=verbose)
    parts += _file_text(report, verbose=verbose)
    if seconds := report.facts.get("seconds"):
        parts.append(_seconds_text(seconds))
    if found := report.facts.get("found"):
        parts.append(found_text(found, verbose=verbose))
    if report.files:
        lines = [f"  {f.path}  {f.size:,} bytes  sha256 {f.sha256[:16]}" for f in report.files]
        parts.append("\n".join([f"wrote {report.output}", *lines]))
    if report.dry_run:
        planned = _space_text(report.facts.get("space")) + _expected_text(report.facts.get("proof"))
        parts.append(f"dry run: nothing was written{planned}")
    return "\n\n".join(parts)


def levels_text(report: Report) -> str:
    """Return which levels are proven, and why another one was not run: a line each."""
    levels = levels_json(report.checks, report.unproven)
    rows = [
        ("proven", [level for level, found in levels.items() if found["proven"]]),
        ("failed", [n for n, f in levels.items() if not f["proven"] and "why" not in f]),
    ]
    lines = [f"{word:8} {', '.join(names)}" for word, names in rows if names]
    return "\n".join([*lines, *(f"unproven {n}: {why}" for n, why in report.unproven.items())])


def _proof_text(report: Report, *, verbose: bool) -> Iterator[str]:
    """Yield the checks, and what rounding left of the updates and of their effect."""
    if report.checks:
        yield checks_text(report.checks, verbose=verbose)
    if survival := report.facts.get("survival"):
        yield survival_text(survival)
    if report.kept:
        yield f"rounding: {report.kept} (the least is of {report.kept.output})"


def _file_text(report: Report, *, verbose: bool) -> Iterator[str]:
    """Yield the paragraphs about an ONNX file, other than its checks."""
    if graph := report.facts.get("graph"):
        yield _graph_text(graph, proven=bool(report.checks))
    if lowered := report.facts.get("lowered"):
        yield lowered_text(lowered, verbose=verbose)
    for name, each in report.facts.get("graphs", {}).items():
        yield f"{name}: {_graph_text(each, proven=bool(report.checks))}"
    if report.facts.get("session", {}).get("weights") == "mapped":
        yield _MAPPED


def _graph_text(graph: Mapping[str, Any], *, proven: bool) -> str:
    """Return the graph's size, what it was compared with, and what the merge saves.

    proven: the graph was compared with the base's.
    """
    size = f"{graph['nodes']} nodes, {graph['initializers']} initializers"
    kept = _KEPT if graph["capture"] == "cached" else ""
    if not proven:
        text = f"graph: {size}, hash {graph['hash'][:12]}; not compared with the base's"
        return f"{text}{kept}"
    lines = [f"zero overhead: topology equal to the base: {size}, hash {graph['hash'][:12]}{kept}"]
    if saved := graph["saved"]:
        nodes, parameters = saved["nodes"], saved["parameters"]
        lines.append(
            f"  against the export with the LoRA in the graph: {nodes:,} nodes and "
            f"{parameters:,} parameters saved"
        )
    return "\n".join(lines)


def _seconds_text(seconds: Mapping[str, float]) -> str:
    stages = [f"{stage} {took:.1f}" for stage, took in seconds.items() if stage != "total"]
    return f"seconds: {', '.join(stages)}; {seconds['total']:.1f} in all"


def _space_text(space: Mapping[str, Any] | None) -> str:
    if space is None:
        return ""
    free = "" if space["free"] is None else f", of {space['free']:,} that are free there"
    memory = f"about {space['memory'] // 10**6:,} MB of memory beside Python and torch"
    return f"; it takes {space['needed']:,} bytes{free}, and {memory}"


def _expected_text(proof: Mapping[str, Any] | None) -> str:
    """Return what the proof will take; empty where nothing is known of it."""
    if proof is None:
        return ""
    if proof["not_run"]:
        return f"\n  the proof will be by weights only: {proof['not_run']}"
    seconds = "" if proof["seconds"] is None else f" in about {proof['seconds']:g} seconds"
    memory = f"about {proof['memory'] // 10**6:,} MB of memory"
    return f"\n  the proof as a model reads {proof['read']:,} bytes{seconds}, and takes {memory}"


def plan_text(plan: MergePlan, *, verbose: bool, with_edits: bool = True) -> str:
    """Return what is merged into what, with the facts used for each module.

    verbose: list every module. with_edits: list the edited side files, which an ONNX file lacks.
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
    table = first_rows(rows, verbose=verbose)
    edited = plan.edits().items() if with_edits else ()
    lines = [f"{name}: {'; '.join(edits)}" for name, edits in edited]
    return "\n".join([*head, *table, *(f"  {line}" for line in [*plan.choices, *lines])])


def _full_tensors(adapter: Adapter) -> str:
    """Return the words on full tensors that replace the base's; empty where there are none."""
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
        "n_head={}  n_query_groups={}".format(*delta.heads) if delta.heads else "",
    )


def _whole_row(step: Step) -> Sequence[str]:
    action = "added" if step.action == "add" else "replaced"
    return (step.out.name, action, step.reason, "", "", "", "")


def checks_text(checks: Sequence[Check], *, verbose: bool = False) -> str:
    """Return one line a check: its outcome, its largest difference, and what was allowed.

    The checks of one level stand together, under a line that names what is compared. `verbose` adds
    the source of each tolerance. A failed check always has it.
    """
    levels = list(dict.fromkeys(check.level for check in checks))
    checks = sorted(checks, key=lambda check: levels.index(check.level))
    rows = [
        (
            "ok" if check.passed else "FAILED",
            check.name,
            _measure(check),
            check.detail if verbose or not check.passed else check.detail.partition("; ")[0],
        )
        for check in checks
    ]
    lines, shown = ["checks"], ""
    for check, line in zip(checks, aligned(rows), strict=True):
        if check.level != shown:
            lines.append(f" {_COMPARED[check.level]}")
        shown = check.level
        lines.append(line)
    return "\n".join(lines)


def _measure(check: Check) -> str:
    if check.tolerance == 0:
        return "none differ" if check.worst == 0 else f"{check.worst:g} differ at {check.where}"
    worst = f"{check.worst:.2g}" if isfinite(check.worst) else str(check.worst)
    if check.at_least:
        return f"{worst}, {check.tolerance:.2g} needed"
    return f"{worst} of {check.tolerance:.2g} allowed"
