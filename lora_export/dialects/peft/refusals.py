"""Refuses types of PEFT that no merge can express, or that this program does not merge.

Every type of PEFT 0.21.2 is read by a tuner or listed here; a test compares that with its PeftType.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig

_PROMPTS = "learned prompts are inputs, not weights"
NO_WEIGHT = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": "learned prefixes are keys and values, not weights",
    "CARTRIDGE": "a learned cache is keys and values, not weights",
    "CPT": _PROMPTS,
    "ADAPTION_PROMPT": "learned prompts enter the attention, not the weights",
    "POLY": "the mixture depends on the task of every call",
    "XLORA": "the mixture depends on every input",
    "LILY": "the mixture depends on every input",
    "SHADOW": "its path beside the layers depends on every input",
}
"""Types that no merge can express, with the reason."""

BY_PEFT = frozenset({
    "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA",
    "HIRA", "HRA", "LN_TUNING", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA",
    "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "WAVEFT",
})  # fmt: skip
"""Types that PEFT's own merge_and_unload() merges."""

_SERVE = "it can only be served beside its base, with PEFT"
_MERGE = (
    "merge it with PEFT: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
    ".save_pretrained(FOLDER); then export FOLDER with this tool"
)
_NEWER = "it may be of a newer PEFT: if that can merge it, export what its merge_and_unload() gives"


def refuse_type(config: PeftConfig) -> NoReturn:
    """Refuse a peft_type that no tuner here reads.

    Raises:
        InputError: always; the message depends on the type.
    """
    kind = config.peft_type
    if kind in NO_WEIGHT:
        config.refuse("peft_type", f"= {kind}: {NO_WEIGHT[kind]}; nothing can be merged", _SERVE)
    if kind in BY_PEFT:
        config.refuse("peft_type", f"= {kind} is merged by PEFT, not by this tool", _MERGE)
    config.refuse("peft_type", f"= {kind:.80} is not known to this tool", _NEWER)
