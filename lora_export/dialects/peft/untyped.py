"""Recognises LORA in an adapter_config.json without peft_type, which PEFT cannot read.

Scripts that write the file by hand leave the member out. LoRA is certain if the config has r and
lora_alpha and no field of another tuner, and the tensors are LoRA's factors alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.dialects.peft.fields import FIELDS
from lora_export.dialects.peft.keys import split_key
from lora_export.dialects.peft.lora import TUNER as LORA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import AdapterFile

_KIND = "peft_type"
_NEEDED = ("r", "lora_alpha")
_FACTORS = ("lora_", "hada_", "lokr_", "vera_", "ia3_")
NOTE = "adapter_config.json has no peft_type: its fields and the tensors are LORA's"


def typed(file: AdapterFile) -> Mapping[str, object]:
    """Return the config of `file` with its peft_type, which is added if LORA is certain."""
    if file.config.get(_KIND) or not _is_lora(file):
        return file.config
    return {**file.config, _KIND: LORA.peft_type}


def notes(file: AdapterFile) -> tuple[str, ...]:
    """Return the note that peft_type was added, if it was."""
    return () if file.config.get(_KIND) else (NOTE,)


def _is_lora(file: AdapterFile) -> bool:
    others = frozenset().union(*FIELDS.values()) - FIELDS[LORA.peft_type]
    if any(file.config.get(key) is None for key in _NEEDED) or others & file.config.keys():
        return False
    parts = {part for name in file.tensors for part in name.split(".")}
    factors = {part for part in parts if part.startswith(_FACTORS)}
    return bool(factors) and factors <= LORA.stems and any(map(_is_lora_key, file.tensors))


def _is_lora_key(name: str) -> bool:
    """Return whether a key is a factor in PEFT's form: a weight, or a parameter of an embedding."""
    key = split_key(name, LORA.stems)
    return key is not None and (key.leaf == "weight" or "embedding" in key.stem)
