"""Finds tensors that the config promises and the file lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.dialects.peft.whole_tensors import automatic_heads, is_in
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lora_export.dialects.peft.config import PeftConfig

_AGAIN = "save the adapter again; under ZeRO-3 or FSDP, gather the weights first"
_SHOWN = 300
"""Characters of a list of names in a message."""


def lacking_modules(config: PeftConfig, names: Collection[str]) -> tuple[list[Problem], list[str]]:
    """Return (problems, doubts) about modules_to_save.

    PEFT adds all heads of the task to the list, and a model has only one of them. A list of which
    some modules are there is therefore no problem but a doubt.

    names: of the file's full tensors.
    """
    promised = [name for name in config.texts("modules_to_save") if name]
    lacking = [name for name in promised if not any(is_in(held, [name]) for held in names)]
    if not lacking:
        return [], []
    shown = ", ".join(lacking)[:_SHOWN]
    if len(lacking) == len(promised):
        message = f"modules_to_save lists {shown}, of which the file holds no tensor"
        hint = f"{_AGAIN}; if the model has no such module, take it off the list"
        return [Problem(message, str(config.path), hint, cause="input/incomplete")], []
    automatic = automatic_heads(config)
    if config.flag("ensure_weight_tying"):  # several modules share one tensor of the file
        return [], []
    shown = ", ".join(name for name in lacking if name not in automatic)[:_SHOWN]
    doubt = f"{config.path.name}: modules_to_save lists {shown}, of which the file holds no tensor"
    return [], [doubt] if shown else []


def lacking_rows(config: PeftConfig, modules: Sequence[str]) -> tuple[list[Problem], list[str]]:
    """Return (problems, doubts) about trainable_token_indices.

    modules: those for which the file holds rows.
    """
    key = "trainable_token_indices"
    value = config.members.get(key)
    if not value:
        return [], []
    if not modules:
        message = f"{key} is set, but the file holds no rows"
        return [Problem(message, str(config.path), _AGAIN, cause="input/incomplete")], []
    names = value if isinstance(value, dict) else {}
    plain = [module.removesuffix(".token_adapter") for module in modules]
    lacking = [name for name in names if not any(module.endswith(name) for module in plain)]
    shown = ", ".join(lacking)[:_SHOWN]
    doubt = f"{config.path.name}: {key} names {shown}, of which the file holds no rows"
    return [], [doubt] if shown else []
