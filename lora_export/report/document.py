"""The object that --json prints, and the part of it that the manifest keeps: docs/json.md."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lora_export.report.result import Report, plan_json, tensor_counts
from lora_export.report.verdict import levels_json, verdict_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Attribution, Check, KeptEffect, Problem


def report_json(report: Report) -> dict[str, Any]:
    """Return the object that --json prints: of a result, and of a refusal with what it found."""
    plan = report.plan if not report.problems else None
    return {
        "command": report.command,
        "ok": report.passed is not False and not report.problems,
        "verdict": verdict_json(report),
        "output": report.output if not report.problems else "",
        "plan": plan_json(plan, whole=report.dry_run) if plan else None,
        "tensors": tensor_counts(plan) if plan else None,
        "verification": _verified(report) if report.checks else None,
        "findings": [asdict(finding) for finding in report.findings],
        "files": {file.path: {"sha256": file.sha256, "bytes": file.size} for file in report.files},
        "warnings": list(report.warnings),
        **report.facts,
        "next": report.next,
        "error": _error(report.code, report.problems) if report.problems else None,
    }


def _verified(report: Report) -> dict[str, Any]:
    return verification_json(
        report.checks, report.attribution, kept=report.kept, unproven=report.unproven
    )


def error_json(command: str, code: str, problems: tuple[Problem, ...]) -> dict[str, Any]:
    """Return the object that --json prints for a refusal without checks.

    Args:
        command: its name; empty where the command line names none.
        code: the kind of the refusal, such as "usage" or "fit"; see docs/json.md.
        problems: all of them, at least one; the first is also the error's own message.
    """
    return report_json(Report(command, problems=problems, code=code))


def _error(code: str, problems: tuple[Problem, ...]) -> dict[str, Any]:
    listed = [
        {"message": p.message, "where": p.where, "hint": p.hint, "explain": p.cause}
        for p in problems
    ]
    return {"code": code, **listed[0], "problems": listed}


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
                "basis": check.basis,
            }
            for check in checks
        ],
    }
