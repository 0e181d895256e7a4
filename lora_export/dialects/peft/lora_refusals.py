"""Refuses members of a LoRA config that no merged weight can reproduce, or none of this program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig

STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Values of init_lora_weights, beside true and false, that leave the base as it is on disk."""

VARIANTS = frozenset({"use_dora", "mica"})
"""Members, and values of init_lora_weights, that choose a variant of a layer which is merged."""

_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of training that change the base; the adapter is right only on the changed one."""

_BOOLEANS = frozenset({"true", "false"})
_SERVE = "serve it with PEFT"
_BY_PEFT = "merge it with PEFT's merge_and_unload(), then export the result with this tool"
_NOT_MERGEABLE = {
    "alora_invocation_tokens": ("an activated LoRA only works after its invocation tokens",
                                _SERVE),
    "arrow_config": ("Arrow chooses among its adapters for every token", _SERVE),
    "use_qalora": ("QALoRA pools the input before A", _SERVE),
    "monteclora_config": ("MonteCLoRA draws its factors anew for every call", _SERVE),
    "kasa_config": ("KaSA also cuts singular values from the base", _BY_PEFT),
    "use_bdlora": ("block-diagonal factors are not merged by this tool", _BY_PEFT),
    "velora_config": ("VeLoRA is not merged by this tool", _BY_PEFT),
}  # fmt: skip


def refusals(config: PeftConfig) -> list[Problem]:
    """Return a problem for every member of the config that forbids a merge."""
    where = str(config.path)
    problems = [
        Problem(f"{key}: {why}", where, hint, cause="input/peft-option")
        for key, (why, hint) in _NOT_MERGEABLE.items()
        if config.members.get(key)
    ]
    start = config.members.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in STARTS | _BOOLEANS:
        problems.append(_other_start(config, start))
    if config.flag("use_dora") and variant_of(config):
        message = f"use_dora with init_lora_weights = {start!r}: PEFT takes only one of them"
        problems.append(
            Problem(message, where, "train without one of them", cause="input/peft-option")
        )
    if config.flag("lora_bias") and config.flag("use_dora"):
        message = "lora_bias with use_dora: PEFT takes only one of them"
        problems.append(
            Problem(message, where, "train without lora_bias", cause="input/peft-option")
        )
    return problems


def variant_of(config: PeftConfig) -> str:
    """Return the variant of a layer that init_lora_weights chooses, or "".

    Reproduces PEFT 0.21.2, tuners.lora.layer.LoraLayer.resolve_lora_variant, which compares upper
    and lower case.
    """
    start = config.members.get("init_lora_weights")
    return start if isinstance(start, str) and start in VARIANTS else ""


def _other_start(config: PeftConfig, start: str) -> Problem:
    shown = f"init_lora_weights = {start!r:.80}"
    if start.lower().startswith(_CHANGED_BASE):
        message = f"{shown}: the adapter is right only on the base that this start has changed"
        hint = (
            "convert it in training with save_pretrained(path_initial_model_for_weight_conversion="
            "...), or give that changed base here and set init_lora_weights to true"
        )
        return Problem(message, str(config.path), hint, cause="input/peft-option")
    message = f"{shown} is not known: it may start from another base, or choose other layers"
    hint = (
        "if the adapter is a plain LoRA on the base as it is on disk, set init_lora_weights to true"
    )
    return Problem(message, str(config.path), hint, cause="input/peft-option")
