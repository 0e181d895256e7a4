"""What the configuration says that training made, and the file does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.dialects.peft.whole_tensors import automatic_heads, is_in
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lora_export.dialects.peft.config import PeftConfig

_AGAIN = "saved under ZeRO-3 or FSDP without gathering? save the adapter again"


def lacking_modules(config: PeftConfig, names: Collection[str]) -> tuple[list[Problem], list[str]]:
    """(problems, doubts) about modules_to_save, given the names of the file's full tensors.

    PEFT adds the heads of the task to the list, whichever of them the model has.
    """
    listed = [name for name in config.texts("modules_to_save") if name]
    lacking = [name for name in listed if not any(is_in(held, [name]) for held in names)]
    if not lacking:
        return [], []
    told = ", ".join(lacking)[:300]
    if len(lacking) == len(listed):
        message = f"modules_to_save lists {told}, of which the file holds no tensor"
        hint = f"{_AGAIN}; where the model has no such module, take it off the list"
        return [Problem(message, str(config.path), hint)], []
    automatic = automatic_heads(config)
    if config.flag("ensure_weight_tying"):  # one tensor is of several modules
        return [], []
    told = ", ".join(name for name in lacking if name not in automatic)[:300]
    doubt = f"{config.path.name}: modules_to_save lists {told}, of which the file holds no tensor"
    return [], [doubt] if told else []


def lacking_rows(config: PeftConfig, modules: Sequence[str]) -> tuple[list[Problem], list[str]]:
    """(problems, doubts) about trainable_token_indices, given the modules that rows are of."""
    key = "trainable_token_indices"
    value = config.members.get(key)
    if not value:
        return [], []
    if not modules:
        message = f"{key} is set, and the file holds no rows"
        return [Problem(message, str(config.path), _AGAIN)], []
    names = value if isinstance(value, dict) else {}
    plain = [module.removesuffix(".token_adapter") for module in modules]
    lacking = [name for name in names if not any(module.endswith(name) for module in plain)]
    told = ", ".join(lacking)[:300]
    doubt = f"{config.path.name}: {key} names {told}, of which the file holds no rows"
    return [], [doubt] if told else []
