"""The outcome of a command as plain data: one object for text, JSON and the manifest."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lora_export.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.errors import LoraExportError
    from lora_export.records import (
        Attribution,
        Check,
        Finding,
        KeptEffect,
        MergePlan,
        Problem,
        Step,
        WrittenFile,
    )


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What a command did; a notebook shows its verdict, and not its thousands of tensors."""

    #: Its name: "merge", "onnx", "verify", "unmerge" or "inspect".
    command: str
    #: The file or folder that was written or proven; empty where there is none.
    output: str = ""
    #: Every output tensor with its arithmetic; None for a command without a merge.
    plan: MergePlan | None = None
    #: What was proven, check by check; empty where nothing was.
    checks: tuple[Check, ...] = ()
    #: What was written, with size and SHA-256.
    files: tuple[WrittenFile, ...] = ()
    #: What needs the user's attention.
    warnings: tuple[str, ...] = ()
    #: Further results by name, as --json prints them: docs/json.md.
    facts: Mapping[str, Any] = field(default_factory=dict)
    #: Whether only the plan was made.
    dry_run: bool = False
    #: What rounding left of the adapter's effect on the outputs; None where it was not measured.
    kept: KeptEffect | None = None
    #: Why a level of the proof was not run or shows nothing, by its name.
    unproven: Mapping[str, str] = field(default_factory=dict)
    #: Where a failed check comes from; None where every check passed, or where it was not found.
    attribution: Attribution | None = None
    #: The mistakes that explain the failed checks, the one that explains most first.
    findings: tuple[Finding, ...] = ()
    #: The command to run next, quoted for a shell; empty where none is known to work.
    next: str = ""
    #: Why the command refused, at least one problem then; empty where it did what was asked.
    problems: tuple[Problem, ...] = ()
    #: The kind of the refusal, such as "fit" (docs/json.md); empty where there is none.
    code: str = ""

    @property
    def passed(self) -> bool | None:
        """Return whether every check passed; None when nothing was checked."""
        return all(check.passed for check in self.checks) if self.checks else None

    def __repr__(self) -> str:
        text: str = _display().short_repr(self)
        return text

    def _repr_html_(self) -> str:
        """Return the verdict and the sizes that decide it, for a notebook."""
        html: str = _display().fragment(self)
        return html


def _display() -> Any:
    """Return the module that shows a report; it is made of reports, so none may import it here."""
    return import_module("lora_export.report.page.fragment")


def refused(command: str, error: LoraExportError) -> Report:
    """Return the report of a command that raised `error`, with all that the proof had found."""
    report = Report(command, problems=error.problems, code=error.code)
    if not isinstance(error, VerificationError):
        return report
    return replace(
        report,
        output=error.artefact,
        plan=error.plan,
        checks=error.checks,
        facts=error.facts,
        attribution=error.attribution,
        findings=error.findings,
    )


def json_text(document: Mapping[str, Any]) -> str:
    """Return the document as JSON; numbers that JSON lacks become "NaN" and "[-]Infinity"."""
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value


def tensor_counts(plan: MergePlan) -> dict[str, int]:
    """Return how many tensors the result has, and how many of them are changed or new."""
    steps = plan.steps()
    added = sum(step.action == "add" for step in steps)
    return {"total": len(steps), "changed": len(plan.changed()) - added, "added": added}


def plan_json(plan: MergePlan, *, whole: bool) -> dict[str, Any]:
    """Return the plan; with `whole` every output tensor, else those that are not copies."""
    return {
        "base": str(plan.base.root),
        "adapters": [
            {
                "path": str(adapter.path),
                "dialect": adapter.dialect,
                "weight": adapter.weight,
                "updates": len(adapter.updates),
                "full_tensors": len(adapter.replacements),
                "joined": list(dict.fromkeys(adapter.joined.values())),
                "ignored": adapter.ignored,
            }
            for adapter in plan.adapters
        ],
        "recipe": plan.recipe,
        "tensors": [
            _step_json(step, shard.file)
            for shard in plan.shards
            for step in shard.steps
            if whole or step.action != "copy"
        ],
        "side_files": _side_files_json(plan),
        "choices": plan.choices,
        "dropped": dict(plan.dropped),
        "unmatched": plan.unmatched,
    }


def _side_files_json(plan: MergePlan) -> list[dict[str, Any]]:
    edits = plan.edits()
    names = [*(file.name for file in plan.side_files), *(["README.md"] if plan.card else [])]
    return [
        {"name": name, "action": "edit" if name in edits else "copy", "edits": edits.get(name, ())}
        for name in names
    ]


def _step_json(step: Step, file: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": step.out.name,
        "action": step.action,
        "dtype": step.out.dtype,
        "shape": step.out.shape,
        "file": file,
    }
    if step.reason:
        entry["reason"] = step.reason
    if step.deltas:
        entry["updates"] = updates_json(step)
    return entry


def updates_json(step: Step) -> list[dict[str, Any]]:
    """Return the arithmetic of a merged tensor: one entry of facts for each update."""
    return [
        {
            "adapter": delta.adapter,
            "module": delta.module,
            "kind": delta.kind,
            "rank": delta.rank,
            "alpha": delta.alpha,
            "scaling": delta.scaling,
            "scaling_rule": delta.rule,
            "weight": delta.weight,
            "fan_in_fan_out": delta.fan_in_fan_out,
            "enable_lora": [int(block) for block in delta.enable_lora],
            **({"heads": list(delta.heads)} if delta.heads else {}),
        }
        for delta in step.deltas
    ]
