"""The types of PEFT that have no merged weight, or none here, and what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig

_SERVE = "it can only be served beside its base, with PEFT"
_NO_WEIGHT = {
    "PROMPT_TUNING": "learned prompts are inputs, not weights",
    "MULTITASK_PROMPT_TUNING": "learned prompts are inputs, not weights",
    "P_TUNING": "learned prompts are inputs, not weights",
    "PREFIX_TUNING": "learned prefixes are keys and values, not weights",
    "CPT": "learned prompts are inputs, not weights",
    "ADAPTION_PROMPT": "learned prompts enter the attention, not the weights",
    "POLY": "the mixture depends on the task of every call",
    "XLORA": "the mixture depends on every input",
}
_BY_PEFT = "merge it with PEFT's merge_and_unload(), then export the result with this tool"


def refuse_type(config: PeftConfig) -> NoReturn:
    """Raise InputError for a peft_type that no tuner here reads."""
    kind = config.peft_type
    if kind in _NO_WEIGHT:
        config.refuse("peft_type", f"= {kind}: {_NO_WEIGHT[kind]}; nothing can be merged", _SERVE)
    config.refuse("peft_type", f"= {kind} is not merged by this tool", _BY_PEFT)
