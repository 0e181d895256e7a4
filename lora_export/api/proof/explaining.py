"""Names the mistakes of a merge whose proof failed, whoever made it.

It runs only after a check has failed, and its result is only words.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.api.proof.model_proof import Proven
    from lora_export.records import Check, Checkpoint, Finding, MergePlan


def explained(plan: MergePlan, merged: Checkpoint, proven: Proven) -> Proven:
    """Return the proof with the mistakes that explain its failed checks.

    A proof that passed, or that has findings already, is returned as it is. An exception must not
    hide a failed check, so a checkpoint that cannot be read further has no findings.

    Args:
        plan: what should have been merged.
        merged: what was proven.
        proven: the proof.
    """
    from lora_export.verification.blame.diagnosis.diagnose import diagnose
    from lora_export.verification.files.file_findings import file_findings

    failed = {check.level for check in proven.checks if not check.passed}
    if not failed or proven.findings:
        return proven
    findings: tuple[Finding, ...] = ()
    facts: dict[str, Any] = {}
    try:
        if "manifest" in failed:
            findings = (*findings, *file_findings(plan, merged))
        if "weights" in failed:
            found = diagnose(plan, merged.tensors(), proven.wrong)
            findings, facts = (*found.findings, *findings), {"modules": list(found.modules)}
    except Exception as error:  # noqa: BLE001 - the report needs the failed check in any case
        reason = reason_of(error)
        facts["undiagnosed"] = f"{type(error).__name__}: {reason}"
    checks = _with_cure(proven.checks, findings)
    return replace(proven, checks=checks, findings=findings, facts={**proven.facts, **facts})


def _with_cure(checks: tuple[Check, ...], findings: Sequence[Finding]) -> tuple[Check, ...]:
    """Give the failed checks of the weights a hint, where the cure of the mistake is known."""
    dtypes = [name for found in findings if found.code == "rounded-before"
              for name in ("bfloat16", "float16") if name in found.message]  # fmt: skip
    if not dtypes:
        return checks
    hint = (
        f"save the base in {dtypes[0]}, from_pretrained(BASE, dtype=torch.{dtypes[0]})"
        ".save_pretrained(FOLDER), and name FOLDER as --base"
    )
    return tuple(
        replace(check, hint=hint) if check.level == "weights" and not check.passed else check
        for check in checks
    )
