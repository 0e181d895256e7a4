"""Trained rows of an embedding table, by their numbers (PEFT 0.21.2, tuners.trainable_tokens).

The file holds the rows, the configuration alone their numbers: token_indices of a
TRAINABLE_TOKENS adapter, trainable_token_indices of any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.dialects.peft.config import CONFIG_NAME
from lora_export.dialects.peft.tuner import Tuner
from lora_export.records import Problem, Said, Update

if TYPE_CHECKING:
    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules

STEM = "trainable_tokens_delta"
_TYPE = "TRAINABLE_TOKENS"


def token_updates(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    """The rows of every table: by module, with or without PEFT's `.token_adapter` at its end."""
    key = "token_indices" if config.peft_type == _TYPE else "trainable_token_indices"
    updates, problems = [], []
    for wrapped, stems in modules.items():
        module, ref = wrapped.removesuffix(".token_adapter"), stems[STEM]
        where = f"{config.path.parent}: {module}"
        indices = _indices(config, key, module)
        sizes = ref.spec.shape
        if indices is None:
            problems.append(Problem(f"{key} names no tokens of this module", where))
        elif len(sizes) != 2 or sizes[0] != len(indices):  # noqa: PLR2004
            message = f"holds rows {list(sizes)} for the {len(indices)} tokens of {key}"
            problems.append(Problem(message, where, "configuration and tensors differ in origin"))
        else:
            said = Said("trainable_tokens", 1.0, None, "1", indices=indices, source=CONFIG_NAME)
            updates.append(Update(module, {"rows": ref}, said=said))
    return updates, problems


def _indices(config: PeftConfig, key: str, module: str) -> tuple[int, ...] | None:
    """The numbers for `module`: of the list, or of the first name that the module ends in."""
    value = config.members.get(key)
    if isinstance(value, dict):
        value = next((v for name, v in value.items() if name and module.endswith(name)), None)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        config.refuse(key, f"= {value!r:.80} is no list of token numbers")
    if len(set(value)) != len(value):
        config.refuse(key, "names a token twice, which has one row in the file for each")
    return tuple(value)


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    """Nothing: the rows are read of adapters of every type alike."""
    del config, modules
    return [], []


def _refusals(config: PeftConfig) -> list[Problem]:
    del config
    return []


TUNER = Tuner(_TYPE, frozenset({STEM}), _read, _refusals)
