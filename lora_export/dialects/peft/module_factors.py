"""What is wrong with the factors of one module, for the readers of all tuners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules


def place(config: PeftConfig, module: str) -> str:
    """Where a problem is."""
    return f"{config.path.parent}: {module or '(root module)'}"


def lacking(config: PeftConfig, module: str, stems: Iterable[str]) -> Problem | None:
    """A problem where `stems` are missing of a module that has others."""
    names = ", ".join(sorted(stems))
    if not names:
        return None
    hint = "a factor without its partners cannot be merged: save the adapter again"
    return Problem(
        f"{names} missing beside the module's other factors", place(config, module), hint
    )


def with_biases(config: PeftConfig, modules: Modules) -> list[Problem]:
    """Factors have no biases but in LoRA: what nobody reads may not be passed over."""
    return [
        Problem(f"{stem} is no factor of {config.peft_type}", place(config, module))
        for module, stems in modules.items()
        for stem in stems
        if stem.endswith(".bias")
    ]
