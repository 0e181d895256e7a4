"""Reads trained rows of an embedding table (PEFT 0.21.2, tuners.trainable_tokens).

The file holds the rows, and only the config holds their numbers. The member is token_indices for a
TRAINABLE_TOKENS adapter, trainable_token_indices for any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.module_factors import OTHER_CONFIG
from lora_export.dialects.peft.tuner import Tuner, no_refusals
from lora_export.records import Problem, Terms, Update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import TensorRef

STEM = "trainable_tokens_delta"
"""The last component of the key of such rows."""

_TYPE = "TRAINABLE_TOKENS"


def token_updates(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    """Return the update of every table with trained rows, and every problem.

    modules: rows by module, whose name may end in PEFT's `.token_adapter`.
    """
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
            hint = f"add the module to {key}, with the tokens in the order of the rows"
            problems.append(Problem(message, where, hint, cause="input/other-config"))
        elif len(sizes) != 2 or sizes[0] != len(indices):
            message = f"holds rows {list(sizes)} for the {len(indices)} tokens of {key}"
            problems.append(Problem(message, where, OTHER_CONFIG, cause="input/other-config"))
        else:
            terms = Terms(
                "trainable_tokens", 1.0, None, "1", indices=indices, source=ADAPTER_CONFIG
            )
            updates.append(Update(module, {"rows": ref}, terms=terms))
    return updates, problems


def _of_tied(
    module: str, rows: Mapping[str, TensorRef], named: Mapping[str, tuple[int, ...] | None]
) -> tuple[int, ...] | None:
    """Return the numbers of the one other table with the same rows; None when there is no such.

    PEFT trains a head that is tied to a table with the table's own rows. With the embeddings it
    saves the rows under both names, but the config has only one of them.
    """
    found = {
        indices
        for other, indices in named.items()
        if indices is not None and same_content(rows[other], rows[module])
    }
    return found.pop() if len(found) == 1 else None


def _indices(config: PeftConfig, key: str, module: str) -> tuple[int, ...] | None:
    """Return the numbers for `module`: the list, or that of the first name the module ends in."""
    value = config.members.get(key)
    if isinstance(value, dict):
        value = next((v for name, v in value.items() if name and module.endswith(name)), None)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        config.refuse(key, f"= {value!r:.80} is no list of token numbers")
    if len(set(value)) != len(value):
        # torch's index_copy, with which PEFT writes the rows, does not define which one stays.
        config.refuse(key, "names a token twice", "save the adapter again with each token once")
    return tuple(value)


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    """Read nothing: rows are read by token_updates, for adapters of every type."""
    del config, modules
    return [], []


TUNER = Tuner(_TYPE, frozenset({STEM}), _read, no_refusals)
