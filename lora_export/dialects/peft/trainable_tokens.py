"""Trained rows of an embedding table, by their numbers (PEFT 0.21.2, tuners.trainable_tokens).

The file holds the rows, the configuration alone their numbers: token_indices of a
TRAINABLE_TOKENS adapter, trainable_token_indices of any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.tuner import Tuner
from lora_export.records import Problem, Said, Update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import TensorRef

STEM = "trainable_tokens_delta"
_TYPE = "TRAINABLE_TOKENS"


def token_updates(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    """The rows of every table: by module, with or without PEFT's `.token_adapter` at its end."""
    key = "token_indices" if config.peft_type == _TYPE else "trainable_token_indices"
    updates, problems = [], []
    rows = {name.removesuffix(".token_adapter"): stems[STEM] for name, stems in modules.items()}
    named = {module: _indices(config, key, module) for module in rows}
    for module, ref in rows.items():
        where = f"{config.path.parent}: {module}"
        indices, sizes = named[module] or _of_tied(module, rows, named), ref.spec.shape
        if indices is None:
            message = f"{key} names no tokens of this module"
            others = [other for other, found in named.items() if found is not None]
            if others:
                message += f", and it has other rows than {' and '.join(others)}"
            problems.append(Problem(message, where))
        elif len(sizes) != 2 or sizes[0] != len(indices):  # noqa: PLR2004
            message = f"holds rows {list(sizes)} for the {len(indices)} tokens of {key}"
            problems.append(Problem(message, where, "configuration and tensors differ in origin"))
        else:
            said = Said("trainable_tokens", 1.0, None, "1", indices=indices, source=ADAPTER_CONFIG)
            updates.append(Update(module, {"rows": ref}, said=said))
    return updates, problems


def _of_tied(
    module: str, rows: Mapping[str, TensorRef], named: Mapping[str, tuple[int, ...] | None]
) -> tuple[int, ...] | None:
    """The numbers of the one table that has the same rows.

    PEFT trains a head that is tied to a table with the table's own rows. Where embeddings are saved
    it writes them under both names, of which the configuration has one.
    """
    found = {
        indices
        for other, indices in named.items()
        if indices is not None and same_content(rows[other], rows[module])
    }
    return found.pop() if len(found) == 1 else None


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
