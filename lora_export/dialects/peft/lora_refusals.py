"""What a LoRA configuration may say that no merged weight reproduces, or none here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig

# They start from another base than the one on disk, and are right only on that.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_SERVE = "serve it with PEFT"
_BY_PEFT = "merge it with PEFT's merge_and_unload(), then export the result with this tool"
_NOT_MERGEABLE = {
    "alora_invocation_tokens": ("an activated LoRA works from the invocation tokens on only",
                                _SERVE),
    "arrow_config": ("Arrow chooses among its adapters for every token", _SERVE),
    "use_qalora": ("QALoRA pools the input before A", _SERVE),
    "monteclora_config": ("MonteCLoRA draws its factors anew for every call", _SERVE),
    "layer_replication": ("the adapter is for a model with repeated layers, not for this base",
                          "save the model with its repeated layers, and merge into that"),
    "kasa_config": ("KaSA also cuts singular values from the base", _BY_PEFT),
    "use_bdlora": ("block-diagonal factors are not merged by this tool", _BY_PEFT),
    "velora_config": ("VeLoRA is not merged by this tool", _BY_PEFT),
}  # fmt: skip


def refusals(config: PeftConfig) -> list[Problem]:
    """Every member of the file that forbids a merge."""
    where = str(config.path)
    problems = [
        Problem(f"{key}: {why}", where, hint)
        for key, (why, hint) in _NOT_MERGEABLE.items()
        if config.members.get(key)
    ]
    start = config.members.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        message = f"init_lora_weights = {start!r:.80}: the adapter is right only on the base that "
        hint = (
            "convert it in training with save_pretrained(path_initial_model_for_weight_conversion="
            "...), or name that changed base here and set init_lora_weights to true"
        )
        problems.append(Problem(f"{message}this start has changed", where, hint))
    if config.flag("lora_bias") and config.flag("use_dora"):
        message = "lora_bias with use_dora: PEFT takes only one of them"
        problems.append(Problem(message, where, "train without lora_bias"))
    return problems
