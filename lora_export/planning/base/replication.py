"""Layers that are written several times, for PEFT's layer_replication.

Reproduces PEFT 0.21.2, tuners.tuners_utils.replicate_layers. The layers of the trained model share
the base's weights, and each has an adapter of its own. After a merge each has weights of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.records import Adapter, Checkpoint

# The names under which PEFT finds layers: .model and .bert, then .layers, .encoder.layer or .h
_LAYER = re.compile(
    r"(?P<list>(?:model\.)*(?:bert\.)?(?:layers|encoder\.layer|h))\.(?P<number>\d{1,6})\."
)
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
# Keys and models whose layers differ by their number, unless layer_types lists the kind of each.
_BY_NUMBER = ("sliding_window_pattern", "full_attention_interval", "attn_layer_period")
_MODELS_BY_NUMBER = ("gemma2", "gemma3", "cohere2", "gpt_oss", "exaone4", "olmo3")


def repeat_layers(
    base: Checkpoint, adapters: Sequence[Adapter], edits: ConfigEdits, findings: Findings
) -> Mapping[str, tuple[str, ...]]:
    """Return the new names of every tensor of a layer, and edit config.json.

    A layer that is left out has no new names. The result is empty where no layer changes.
    """
    maps = {adapter.replication for adapter in adapters}
    if maps == {()}:
        return {}
    if len(maps) > 1:
        message = "the adapters put the layers together differently (layer_replication)"
        findings.unfit.append(
            Problem(message, ", ".join(str(a.path) for a in adapters), cause="fit/layers")
        )
        return {}
    where = f"{adapters[0].path}: layer_replication"
    found = {name: match for name in base.tensors() if (match := _LAYER.match(name))}
    lists = {match["list"] for match in found.values()}
    count = 1 + max((int(match["number"]) for match in found.values()), default=-1)
    order = [number for first, end in maps.pop() for number in range(first, end)]
    if len(lists) != 1 or max(order) >= count:
        message = f"{len(lists)} lists of layers in the base, the longest of {count} layers"
        hint = "PEFT knows models with .layers, .encoder.layer or .h"
        findings.unfit.append(Problem(message, where, hint, cause="fit/layers"))
        return {}
    findings.choices.append(f"{count} layers become {len(order)}, made of {_listed(order)}")
    edits.reshaped.append(f"layers: {count} -> {len(order)}")
    if problem := _edit(edits, count, order, where, str(base.root)):
        findings.unfit.append(problem)
    places: dict[int, list[int]] = {}
    for place, number in enumerate(order):
        places.setdefault(number, []).append(place)
    return {
        name: _new_names(name, match, places.get(int(match["number"]), ()))
        for name, match in found.items()
    }


def _new_names(name: str, match: re.Match[str], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{match['list']}.{place}.{name[match.end() :]}" for place in places)


def _listed(order: Sequence[int]) -> str:
    shown = ", ".join(map(str, order[:12]))
    return f"{shown}, ..." if len(order) > 12 else shown


def _edit(
    edits: ConfigEdits, count: int, order: Sequence[int], where: str, root: str
) -> Problem | None:
    """Edit the number of layers, and lists with an entry for each layer, in config.json.

    Returns:
        The problem of a config.json that cannot be edited; None where it was, or there is none.
    """
    config = edits.config
    if not config:
        return None
    key = next((key for key in _COUNTS if config.get(key) == count), None)
    if key is None:
        message = f"config.json has no number of layers that is {count}: {', '.join(_COUNTS)}"
        return Problem(message, root, cause="fit/layers")
    if _differ_by_number(config):
        message = "the base's layers differ by their number, which replication changes"
        hint = "write the base's layer_types into its config.json (transformers 5 saves them)"
        return Problem(message, where, hint, cause="fit/layers")
    edits.edit(key, len(order))
    for name, value in config.items():
        if isinstance(value, list) and len(value) == count and "layer" in name:
            new = [value[number] for number in order]
            edits.edit(name, new, f"{name}: {len(new)} entries in the order of the layers")
    return None


def _differ_by_number(config: Mapping[str, object]) -> bool:
    if isinstance(config.get("layer_types"), list):
        return False
    by_window = bool(config.get("use_sliding_window")) and bool(config.get("max_window_layers"))
    by_key = any(config.get(key) for key in _BY_NUMBER)
    return by_window or by_key or str(config.get("model_type")).startswith(_MODELS_BY_NUMBER)
