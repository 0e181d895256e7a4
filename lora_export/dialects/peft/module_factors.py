"""Checks of one module's factors that the readers of all tuners share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules


OTHER_CONFIG = "the config belongs to another file: save the adapter again"
"""What to do where config and tensors contradict each other."""


def place(config: PeftConfig, module: str) -> str:
    """Return the place of a problem for messages: the folder and the module."""
    return f"{config.path.parent}: {module or '(root module)'}"


def lacking(config: PeftConfig, module: str, stems: Iterable[str]) -> Problem | None:
    """Return the problem of a module without `stems`; None when there are none of them."""
    names = ", ".join(sorted(stems))
    if not names:
        return None
    hint = "a factor without its partners cannot be merged: save the adapter again"
    return Problem(
        f"{names} missing beside the module's other factors",
        place(config, module),
        hint,
        cause="input/factors",
    )


def with_biases(config: PeftConfig, modules: Modules) -> list[Problem]:
    """Return a problem for every bias of a factor; only LoRA's have one, so it would be lost."""
    return [
        Problem(
            f"{stem} is no factor of {config.peft_type}",
            place(config, module),
            cause="input/factors",
        )
        for module, stems in modules.items()
        for stem in stems
        if stem.endswith(".bias")
    ]
