"""Tensors of the file that PEFT would ignore, by what the configuration beside them says.

PEFT 0.21.2, utils.save_and_load.set_peft_model_state_dict: a key without a parameter in the model
that the configuration makes is passed over. Such a file was changed after training, or one of the
two belongs to another adapter; whichever it is, the merged model depends on whom one believes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.dialects.peft.keys import plain_key
from lora_export.dialects.peft.selection import tails
from lora_export.dialects.peft.whole_tensors import TIED, is_in, saved_modules

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Sequence
    from pathlib import Path

    from lora_export.dialects.peft.config import PeftConfig
    from lora_export.dialects.peft.selection import Selection
    from lora_export.records import Origin, Replacement, Update

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module"})
_INSIDE = frozenset({"base_layer", "original_module", "token_adapter"})


def mark_updates(selection: Selection, updates: Sequence[Update]) -> list[Update]:
    """The updates, with what of the configuration leaves them out.

    Whole names of a list may begin with a prefix that all keys of the file lack.
    """
    reasons = {name: selection.leaves_out(name) for name in map(_target, updates) if name}
    lacking = [name for name, reason in reasons.items() if reason == "target_modules"]
    if lacking and any(
        not any(map(selection.leaves_out, (prefix + name for name in reasons)))
        for prefix in _prefixes(selection, lacking[0])
    ):
        return list(updates)
    found = []
    for update in updates:
        is_other = selection.all_linear and bool(_target(update)) and not _may_be_linear(update)
        reason = "target_modules" if is_other else reasons.get(_target(update), "")
        found.append(replace(update, outside=reason))
    return found


def _may_be_linear(update: Update) -> bool:
    """Whether the factors are none of an embedding's and none of a convolution's."""
    tuner = update.said.tuner if update.said else ""
    sizes = [len(ref.spec.shape) for ref in update.factors.values()]
    return not tuner.endswith("_embedding") and max(sizes) <= 2  # noqa: PLR2004


def _prefixes(selection: Selection, module: str) -> set[str]:
    """What stands before the module in names of the list."""
    return {name.removesuffix(module) for name in selection.exact if name.endswith(f".{module}")}


def _target(update: Update) -> str:
    """The name by which the module is selected; "" where it is not by target_modules.

    PEFT makes its layers in the network itself, before others wrap it.
    """
    return ".".join(part for part in _own_target(update).split(".") if part not in _WRAPPERS)


def _own_target(update: Update) -> str:
    tuners = {reading.said.tuner for reading in update.readings() if reading.said}
    if not tuners.isdisjoint({"parameter", "trainable_tokens"}):
        return ""
    if "lora_attention_out" in tuners:
        return update.module.rpartition(".")[0]
    return update.module


def mark_whole(
    config: PeftConfig,
    selection: Selection,
    replacements: Sequence[Replacement],
    updates: Sequence[Update],
    joined: Container[Path],
) -> list[Replacement]:
    """The full tensors, with why PEFT ignores them.

    joined: files beside the adapter's own, of which the configuration says nothing. updates: of
    mark_updates. A bias to which one of B's is added lies under the update.
    """
    made = {update.module for update in updates if not update.outside}
    biased = {update.module for update in updates if update.parameter == "bias"}
    saved = (*saved_modules(config), *(TIED if config.flag("ensure_weight_tying") else ()))
    found = []
    for item in replacements:
        owner, _, leaf = item.name.rpartition(".")
        is_under = leaf == "bias" and owner in biased and item.origin == "shared"
        origin: Origin = "under" if is_under else item.origin
        is_told = item.ref.file not in joined
        outside = _ignored(config, selection, item, made, saved) if is_told else ""
        found.append(replace(item, origin=origin, outside=outside))
    return found


def _ignored(
    config: PeftConfig,
    selection: Selection,
    item: Replacement,
    made: Collection[str],
    saved: Collection[str],
) -> str:
    parts = plain_key(item.ref.spec.name).split(".")
    if "modules_to_save" in parts:
        module = ".".join(parts[: parts.index("modules_to_save")])
        return "" if module.endswith(tuple(saved)) else "modules_to_save"
    if is_in(item.name, saved):
        return ""
    if not _INSIDE.isdisjoint(parts):
        module = ".".join(parts[: min(parts.index(one) for one in _INSIDE & set(parts))])
        has_layer = module in made or "token_adapter" in parts or not _is_left(selection, module)
        return "" if has_layer else "target_modules"
    owner, _, leaf = item.name.rpartition(".")
    ancestors = {item.name[: len(item.name) - len(tail) - 1] for tail in tails(item.name)}
    if ancestors.isdisjoint(made) and (not owner or _is_left(selection, owner)):
        return ""
    # Before 0.7, PEFT's layers were the base's own classes, with their biases in them.
    is_old = not config.text("peft_version") and config.text("bias", "none") != "none"
    return "" if leaf == "bias" and is_old else "base_layer"


def _is_left(selection: Selection, module: str) -> bool:
    """The module has no layer of PEFT, as far as the configuration says it."""
    return selection.is_named is None or bool(selection.leaves_out(module))
