"""Heads in timm's folders: what their config.json says of the classes.

timm 1.0.31 reads the number in three places (models._hub._parse_model_cfg, models._factory), and
drops the head of a file when the number is another one (models._builder.load_pretrained).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.planning.config_edits import ConfigEdits
    from lora_export.planning.findings import Findings
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges

_COUNT = "num_classes"
_OFFSET = "label_offset"
_NAMES = ("label_names", "label_descriptions", "labels")
_PLACES = ("", "pretrained_cfg", "model_args")
# What timm's networks call the head, where config.json does not name it.
_USUAL = ("head", "head.fc", "fc", "classifier")


def is_timm(config: Mapping[str, object]) -> bool:
    """Return whether a config.json is timm's: one architecture, and no classes of transformers."""
    return isinstance(config.get("architecture"), str) and "architectures" not in config


def plan_timm_heads(
    given: Given, changes: TensorChanges, edits: ConfigEdits, findings: Findings
) -> None:
    """Edit config.json where the head has another number of classes than the base's.

    The names of the base's classes are taken out, as timm's own save_for_hf does. A new tensor
    that is none of the head's is a problem, unless --allow-new names it.
    """
    heads = _heads(edits.config)
    found = {name: ref for name, ref in changes.whole().items() if name.rpartition(".")[0] in heads}
    strange = [n for n in changes.heads if n not in found and not given.options.allows_new(n)]
    for name in sorted(strange):
        message = f"is new, and {edits.config['architecture']} has no place for it"
        findings.unfit.append(Problem(message, name, f"--allow-new '{name}'"))
    counts = {ref.spec.shape[0] for ref in found.values() if ref.spec.shape}
    if len(counts) > 1:
        message = f"the heads have different numbers of classes: {sorted(counts)}"
        findings.unfit.append(Problem(message, str(given.base.root)))
    elif counts:
        _edit(edits, counts.pop())


def _heads(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the modules that give the classes; some networks have two."""
    named = _held(config, "pretrained_cfg").get("classifier", config.get("classifier"))
    if isinstance(named, str):
        return (named,)
    return tuple(map(str, named)) if isinstance(named, list) and named else _USUAL


def _held(config: Mapping[str, object], place: str) -> Mapping[str, object]:
    held = config.get(place, {}) if place else config
    return held if isinstance(held, dict) else {}


def _edit(edits: ConfigEdits, count: int) -> None:
    holders = {place: _held(edits.config, place) for place in _PLACES}
    for place, holder in holders.items():
        if holder.get(_OFFSET):  # rows of the base's head that timm skips
            edits.edit(_OFFSET, 0, inside=place)
    said = {place: holder[_COUNT] for place, holder in holders.items() if _COUNT in holder}
    if said and set(said.values()) == {count}:
        return
    for place in said or ("",):
        edits.edit(_COUNT, count, inside=place)
    for place, holder in holders.items():
        for key in (key for key in _NAMES if holder.get(key)):
            edits.edit(key, None, inside=place)
    edits.reshaped.append(f"{count} classes")
