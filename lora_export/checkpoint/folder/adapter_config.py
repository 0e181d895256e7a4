"""Reads adapter_config.json, which lies beside an adapter's weights and defines their meaning."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.checkpoint.reading import fail_on, read_json_object
from lora_export.errors import InputError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_PEFT_START = "base_model.model."
"""How PEFT begins the name of every tensor of an adapter."""


def read_adapter_config(file: Path) -> dict[str, object]:
    """Read adapter_config.json beside the weight file; empty where there is none.

    Raises:
        InputError: it is broken, holds a key twice, or holds a number that JSON cannot express.
            Readers differ about the last two.
        StorageError: it cannot be read.
    """
    path = file.parent / ADAPTER_CONFIG
    # lexists: a link that leads nowhere is a lost config and must not pass for none.
    if not os.path.lexists(path):
        return {}
    config = read_json_object(path, unique_keys=True)
    fail_on(
        [
            Problem(f"{key} is no finite number", str(path), cause="input/adapter-config")
            for key in _not_finite(config, "")
        ]
    )
    return config


def _not_finite(value: object, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def refuse_without_config(
    file: Path, names: Iterable[str], config: Mapping[str, object], metadata: Mapping[str, str]
) -> None:
    """Refuse PEFT's weights without PEFT's config.

    Raises:
        InputError: the names are PEFT's and there is no config.
    """
    if config or metadata.get("lora_adapter_metadata"):  # diffusers stores its config in the file
        return
    if any(name.startswith(_PEFT_START) and ".lora_" in name for name in names):
        raise InputError(
            f"a PEFT adapter without its {ADAPTER_CONFIG}: the weights hold neither alpha nor the "
            "rule of the scaling, and they are never guessed",
            where=str(file),
            hint=f"put the {ADAPTER_CONFIG} that was saved with it into {file.parent}; if it is "
            "lost, write one with peft_type, r, lora_alpha and use_rslora as in training",
            cause="input/no-config",
        )
