"""Reads ADALORA: factors that were pruned in training, scaled by the rank at its start.

Reproduces PEFT 0.21.2, tuners.adalora. `ranknum` is init_r, whatever rank a module has left. PEFT
does not save it, but dumps of the whole state hold it. With a rank_pattern PEFT makes the factors
anew while it loads them, in the weight's dtype. Beside a half-precision weight they are rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import scalar_value
from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.dialects.peft.keys import RANKNUM, plain_key
from lora_export.dialects.peft.module_factors import OTHER_CONFIG, lacking, place, with_biases
from lora_export.dialects.peft.tuner import Tuner
from lora_export.records import FLOAT_DTYPES, Problem, Terms, Update
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.tuner import Modules
    from lora_export.records import TensorRef

_ROLES = {"lora_A": "A", "lora_B": "B", "lora_E": "E"}


def _read(config: PeftConfig, modules: Modules) -> tuple[list[Update], list[Problem]]:
    masks, problems = _masks(config)
    problems += with_biases(config, modules)
    for module, stems in modules.items():
        problems += _problems(config, module, stems, masks)
    if problems:
        return [], problems
    hint = config.members.get("fan_in_fan_out")
    updates = []
    for module, stems in modules.items():
        rank = stems["lora_E"].spec.shape[0]
        if rank == 0:
            continue  # pruned away: the weight stays as it is, and _notes reports it
        terms = Terms(
            tuner="adalora",
            alpha=_alpha(config, rank),
            rank=config.whole("init_r", 12),
            rule="alpha / (rank + 1e-5)",
            fan_in_fan_out=hint if isinstance(hint, bool) else None,
            source=ADAPTER_CONFIG,
            held_as_base=bool(masks),
        )
        factors = {role: stems[stem] for stem, role in _ROLES.items()}
        updates.append(Update(module, factors, terms=terms))
    return updates, []


def _alpha(config: PeftConfig, rank: int) -> float:
    """Return alpha as AdaLoraLayer.update_layer takes it: the module's rank unless positive."""
    alpha = config.number("lora_alpha", 8)
    return alpha if alpha > 0 else float(rank)


def _masks(config: PeftConfig) -> tuple[dict[str, int], list[Problem]]:
    """Read rank_pattern: how many singular values each module has left, and its problems."""
    found: dict[str, int] = {}
    problems = []
    for key, mask in config.table("rank_pattern").items():
        where = f"{config.path}: rank_pattern {key:.200}"
        if not isinstance(mask, list) or not all(isinstance(kept, bool) for kept in mask):
            problems.append(
                Problem("is no list of true and false", where, cause="input/other-config")
            )
            continue
        module, stem, _ = plain_key(key).rpartition(".lora_E")
        if not stem:
            problems.append(Problem("does not name a lora_E", where, cause="input/other-config"))
            continue
        found[module] = sum(mask)
    return found, problems


def _problems(
    config: PeftConfig, module: str, stems: Mapping[str, TensorRef], masks: Mapping[str, int]
) -> list[Problem]:
    where = place(config, module)
    if problem := lacking(config, module, _ROLES.keys() - stems.keys()):
        return [problem]
    start = config.whole("init_r", 12)
    shape = stems["lora_E"].spec.shape
    wanted = masks.get(module, start)
    problems = []
    if shape != (wanted, 1):
        source = "rank_pattern" if module in masks else "init_r"
        message = f"lora_E has shape {list(shape)}, but {source} in {ADAPTER_CONFIG} gives {wanted}"
        problems.append(Problem(message, where, OTHER_CONFIG, cause="input/other-config"))
    if masks and module not in masks:
        message = f"rank_pattern in {ADAPTER_CONFIG} leaves this module out"
        problems.append(
            Problem(message, where, "save the adapter again", cause="input/other-config")
        )
    if RANKNUM in stems and (stored := _number(stems[RANKNUM])) != start:
        message = f"ranknum is {stored}, but init_r in {ADAPTER_CONFIG} is {start}"
        problems.append(
            Problem(
                message,
                where,
                "save the adapter again with save_pretrained",
                cause="input/other-config",
            )
        )
    return problems


def _number(ref: TensorRef) -> float | None:
    """Return the only element of a float tensor; None for any other tensor."""
    is_number = ref.spec.elements == 1 and ref.spec.dtype in FLOAT_DTYPES
    return scalar_value(ref) if is_number else None


def _notes(modules: Modules) -> list[str]:
    pruned = [
        module for module, stems in modules.items()
        if "lora_E" in stems and stems["lora_E"].spec.shape[:1] == (0,)
    ]  # fmt: skip
    if not pruned:
        return []
    return [f"pruned to rank 0 in training, so not changed: {first_names(pruned)}"]


def _refusals(config: PeftConfig) -> list[Problem]:
    """Return a problem for every member that AdaLoraConfig or AdaLoRA's layers do not support."""
    return [
        Problem(
            f"{key} is set, which AdaLoRA does not support",
            str(config.path),
            cause="input/peft-option",
        )
        for key in ("use_dora", "loftq_config", "layer_replication", "target_parameters")
        if config.members.get(key)
    ]


TUNER = Tuner("ADALORA", frozenset({*_ROLES, RANKNUM}), _read, _refusals, _notes)
