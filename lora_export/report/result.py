"""The outcome of a command as plain data: one object for text, JSON and the manifest."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
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


@dataclass(frozen=True, slots=True)
class Report:
    """What a command did."""

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
    #: Why the command refused, at least one problem then; empty where it did what was asked.
    problems: tuple[Problem, ...] = ()
    #: The kind of the refusal, such as "fit" (docs/json.md); empty where there is none.
    code: str = ""

    @property
    def passed(self) -> bool | None:
        """Return whether every check passed; None when nothing was checked."""
        return all(check.passed for check in self.checks) if self.checks else None


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


def report_json(report: Report) -> dict[str, Any]:
    """Return the object that --json prints for a command that returned a report."""
    plan = report.plan
    return {
        "command": report.command,
        "ok": report.passed is not False,
        "output": report.output,
        "plan": plan_json(plan, whole=report.dry_run) if plan else None,
        "tensors": tensor_counts(plan) if plan else None,
        "verification": _verified(report) if report.checks else None,
        "files": {file.path: {"sha256": file.sha256, "bytes": file.size} for file in report.files},
        "warnings": list(report.warnings),
        **report.facts,
        "error": None,
    }


def _verified(report: Report) -> dict[str, Any]:
    return verification_json(report.checks, kept=report.kept, unproven=report.unproven)


def error_json(command: str, code: str, problems: tuple[Problem, ...]) -> dict[str, Any]:
    """Return the object that --json prints for a refusal.

    Args:
        command: its name; empty where the command line names none.
        code: the kind of the refusal, such as "usage" or "fit"; see docs/json.md.
        problems: all of them, at least one; the first is also the error's own message.
    """
    listed = [{"message": p.message, "where": p.where, "hint": p.hint} for p in problems]
    return {
        "command": command,
        "ok": False,
        "output": "",
        "plan": None,
        "tensors": None,
        "verification": None,
        "files": {},
        "warnings": [],
        "error": {"code": code, **listed[0], "problems": listed},
    }


def tensor_counts(plan: MergePlan) -> dict[str, int]:
    """Return how many tensors the result has, and how many of them are changed or new."""
    steps = plan.steps()
    added = sum(step.action == "add" for step in steps)
    return {"total": len(steps), "changed": len(plan.changed()) - added, "added": added}


def verification_json(
    checks: tuple[Check, ...],
    attribution: Attribution | None = None,
    *,
    kept: KeptEffect | None = None,
    unproven: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the checks, whether all passed, and what is to blame (None where unknown).

    kept: what rounding left of the adapter's effect; None where it was not measured. unproven: why
    a level shows nothing, by its name.
    """
    return {
        "passed": all(check.passed for check in checks),
        "levels": levels_json(checks, unproven or {}),
        "attribution": asdict(attribution) if attribution else None,
        "kept_effect": asdict(kept) if kept else None,
        "checks": [
            {
                "name": check.name,
                "level": check.level,
                "passed": check.passed,
                "worst": check.worst,
                "tolerance": check.tolerance,
                "where": check.where,
                "at_least": check.at_least,
                "detail": check.detail,
            }
            for check in checks
        ],
    }


def levels_json(checks: tuple[Check, ...], unproven: Mapping[str, str]) -> dict[str, Any]:
    """Return for each level whether it is proven, and why not where it shows nothing."""
    ran = dict.fromkeys(check.level for check in checks if check.level)
    passed = {level: all(c.passed for c in checks if c.level == level) for level in ran}
    found: dict[str, Any] = {level: {"proven": right} for level, right in passed.items()}
    return found | {level: {"proven": False, "why": why} for level, why in unproven.items()}


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
