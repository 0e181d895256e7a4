"""What must follow from a failed check: nothing is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import VerificationError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Check


def refuse_failed(checks: Sequence[Check], where: str) -> None:
    """Stop when a check failed.

    Raises:
        VerificationError: with every failed check, and all checks for the report.
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
        )
        for check in failed
    ]
    error = VerificationError.of(problems)
    error.checks = tuple(checks)
    raise error
