"""Recognises MultiheadAttention in PEFT (0.15 to 0.21): LoRA on in_proj_weight and on out_proj.

PEFT adapts both or none, so a layer that wraps an adapted out_proj is an attention.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Collection

    from lora_export.dialects.peft.config import PeftConfig

_OUT = "base_layer.out_proj"
_LAST = (0, 21)
"""The last version that is known to add the update of out_proj twice.

MultiheadAttention.merge and the forward in training do so since PEFT 0.15.0; a later version may
not.
"""


def attentions(modules: Collection[str]) -> frozenset[str]:
    """Return the names of the attentions among adapted modules."""
    wrapped = (name for name in modules if name == _OUT or name.endswith(f".{_OUT}"))
    return frozenset(name.removesuffix(_OUT).removesuffix(".") for name in wrapped)


def attention_of(module: str, found: Collection[str]) -> str | None:
    """Return the attention that `module` is, or whose out_proj it is; None for another module."""
    outer = module.removesuffix(_OUT).removesuffix(".")
    return outer if outer in found and module in (outer, f"{outer}.{_OUT}".lstrip(".")) else None


def base_name(module: str) -> str:
    """Return the base's name of an out_proj that PEFT names <attention>.base_layer.out_proj."""
    return ".".join(part for part in module.split(".") if part != "base_layer")


def attention_problems(config: PeftConfig, names: Collection[str]) -> list[Problem]:
    """Return why attentions with these names cannot be merged with this config."""
    where = f"{config.path.parent}: {', '.join(sorted(names))[:200]}"
    problems = []
    if config.flag("lora_bias"):
        message = "lora_bias on a MultiheadAttention: PEFT never uses the bias of its in_proj"
        problems.append(
            Problem(message, where, "train without lora_bias", cause="input/peft-option")
        )
    if config.flag("use_dora"):
        problems.append(
            Problem("PEFT has no DoRA on a MultiheadAttention", where, cause="input/peft-option")
        )
    version = config.text("peft_version")
    number = re.match(r"(\d{1,6})\.(\d{1,6})", version)
    if version and (number is None or (int(number[1]), int(number[2])) > _LAST):
        message = f"peft_version = {version!r:.80} may or may not add the update of out_proj twice"
        hint = "save the adapter with PEFT 0.15 to 0.21, which adds it twice"
        problems.append(Problem(message, where, hint, cause="input/peft-option"))
    return problems
