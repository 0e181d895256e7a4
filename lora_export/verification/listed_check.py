"""Makes a check of a list of what is wrong, the same way at every level of the proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Check

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMED = 3
"""Names in a check's `where`; the report has one line for a check."""


def listed_check(
    name: str, wrong: Sequence[str], detail: str, hint: str = "", *, fault: str = ""
) -> Check:
    """Return a check that passes if nothing is wrong, counts what is, and names the first three.

    Args:
        name: of the check.
        wrong: names of files or tensors.
        detail: what was found, if it passes.
        hint: what to do if it fails.
        fault: what was found, if it fails: one sentence; empty takes `detail` in both cases.
    """
    found = fault if wrong and fault else detail
    return Check(name, not wrong, len(wrong), 0, ", ".join(wrong[:_NAMED]), found, hint=hint)
