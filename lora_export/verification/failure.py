"""What must follow from a failed check: nothing is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import VerificationError
from lora_export.records import Problem
from lora_export.verification.blame.attribution import by_checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Attribution, Check


def refuse_failed(
    checks: Sequence[Check], where: str, attribution: Attribution | None = None
) -> None:
    """Stop when a check failed. attribution: where a closer look has found the fault.

    Raises:
        VerificationError: with every failed check, all checks for the report, and the attribution
            given, or else what the checks alone tell.
    """
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    problems = [
        Problem(
            f"{check.name}: {check.worst:.3g}, "
            f"{'needed' if check.at_least else 'allowed'} {check.tolerance:.3g}"
            + (f" ({check.detail})" if check.detail else ""),
            check.where or where,
            check.hint,
        )
        for check in failed
    ]
    error = VerificationError.of(problems)
    error.checks = tuple(checks)
    error.attribution = attribution or by_checks(failed)
    raise error
