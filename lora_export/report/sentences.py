"""A check as a sentence, for verdicts, messages and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_export.records import Check


def failed_sentence(check: Check) -> str:
    """Return what a failed check found, as one sentence without a full stop."""
    return (
        f"{check.name}: {check.worst:.3g}, "
        f"{'needed' if check.at_least else 'allowed'} {check.tolerance:.3g}"
        + (f" ({check.detail})" if check.detail else "")
    )
