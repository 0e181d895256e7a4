"""The sizes at which the outputs were compared, in words, for texts and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_export.report.result import Report


def probed_words(report: Report) -> str:
    """Return at which sizes of the dynamic dimensions the models were run; empty for none."""
    sizes = report.facts.get("probed", {})
    parts = [f"{name} {' and '.join(map(str, each))}" for name, each in sizes.items()]
    return f"outputs were compared at {', '.join(parts)}" if parts else ""


def probed_sentence(report: Report) -> str:
    """Return the same as a sentence; empty for none."""
    words = probed_words(report)
    return f"{words[0].upper()}{words[1:]}." if words else ""
