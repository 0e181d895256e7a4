"""Marks tensors of the file that PEFT would ignore because of the config beside them.

PEFT makes layers by the config, and ignores a key without a parameter in them. Reproduces PEFT
0.21.2, utils.save_and_load.set_peft_model_state_dict. Such a file or config was changed after
training, or belongs to another adapter. The user has to choose which one to follow.
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
"""Components that torch.compile and FSDP put into names."""

_INSIDE = frozenset({"base_layer", "original_module", "token_adapter"})
"""Components that PEFT's own layers put into names."""


def mark_updates(selection: Selection, updates: Sequence[Update]) -> list[Update]:
    """Return the updates, each with the member of the config that leaves it out.

    target_modules may hold whole names with a prefix that all keys of the file lack. If some prefix
    makes every module a target, no update is marked.
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
    """Return whether the factors are neither of an embedding nor of a convolution."""
    tuner = update.terms.tuner if update.terms else ""
    sizes = [len(ref.spec.shape) for ref in update.factors.values()]
    return not tuner.endswith("_embedding") and max(sizes) <= 2


def _prefixes(selection: Selection, module: str) -> set[str]:
    """Return what stands before the module in the whole names of target_modules."""
    return {name.removesuffix(module) for name in selection.exact if name.endswith(f".{module}")}


def _target(update: Update) -> str:
    """Return the name by which target_modules selects the module; "" when it does not select it.

    PEFT makes its layers before torch.compile or FSDP wraps the network.
    """
    return ".".join(part for part in _own_target(update).split(".") if part not in _WRAPPERS)


def _own_target(update: Update) -> str:
    tuners = {reading.terms.tuner for reading in update.readings() if reading.terms}
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
    """Return the full tensors, each with the member of the config for which PEFT ignores it.

    Args:
        config: the adapter's config.
        selection: the modules that it selects.
        replacements: the full tensors.
        updates: the result of mark_updates.
        joined: files beside the adapter's own, which the config does not describe.
    """
    made = {update.module for update in updates if not update.outside}
    # A bias that an update changes as well is the bias of the layer under PEFT's own.
    biased = {update.module for update in updates if update.parameter == "bias"}
    saved = (*saved_modules(config), *(TIED if config.flag("ensure_weight_tying") else ()))
    found = []
    for item in replacements:
        owner, _, leaf = item.name.rpartition(".")
        is_under = leaf == "bias" and owner in biased and item.origin == "shared"
        origin: Origin = "under" if is_under else item.origin
        is_own = item.ref.file not in joined
        outside = _ignored(config, selection, item, made, saved) if is_own else ""
        found.append(replace(item, origin=origin, outside=outside))
    return found


def _ignored(
    config: PeftConfig,
    selection: Selection,
    item: Replacement,
    made: Collection[str],
    saved: Collection[str],
) -> str:
    """Return the member of the config for which PEFT ignores a full tensor, or ""."""
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
    # Before 0.7, PEFT's layers were subclasses of the base's layers and held their biases.
    is_old = not config.text("peft_version") and config.text("bias", "none") != "none"
    return "" if leaf == "bias" and is_old else "base_layer"


def _is_left(selection: Selection, module: str) -> bool:
    """Return whether the config gives the module no layer of PEFT, or does not list modules."""
    return selection.is_named is None or bool(selection.leaves_out(module))
