"""Heads in timm's folders: the number and the names of their classes in config.json.

timm 1.0.31 reads the number in three places (models._hub._parse_model_cfg, models._factory). It
drops the head of a file with another number of rows (models._builder.load_pretrained).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.records import Problem
from lora_export.shown import shell_word

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
# The names of the head in timm's networks, where config.json does not name it.
_USUAL = ("head", "head.fc", "fc", "classifier")


def is_timm(config: Mapping[str, object]) -> bool:
    """Return whether a config.json is timm's: it has "architecture" and no "architectures"."""
    return isinstance(config.get("architecture"), str) and "architectures" not in config


def plan_timm_heads(
    given: Given, changes: TensorChanges, edits: ConfigEdits, findings: Findings
) -> None:
    """Edit config.json where the head has another number of classes than the base's.

    The names of the base's classes are removed, as timm's own save_for_hf does. A new tensor that
    is not the head's is a problem, unless --allow-new names it.
    """
    heads = _heads(edits.config)
    found = {name: ref for name, ref in changes.whole().items() if name.rpartition(".")[0] in heads}
    strange = [n for n in changes.heads if n not in found and not given.options.allows_new(n)]
    for name in sorted(strange):
        message = f"is new, and {edits.config['architecture']} has no place for it"
        hint = f"--allow-new {shell_word(name, always=True)}"
        findings.unfit.append(Problem(message, name, hint, cause="fit/new-head"))
    counts = {ref.spec.shape[0] for ref in found.values() if ref.spec.shape}
    if len(counts) > 1:
        message = f"the heads have different numbers of classes: {sorted(counts)}"
        findings.unfit.append(Problem(message, str(given.base.root), cause="fit/new-head"))
    elif counts:
        _edit(edits, counts.pop())


def _heads(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the modules that compute the classes; some networks have two."""
    named = _object_at(config, "pretrained_cfg").get("classifier", config.get("classifier"))
    if isinstance(named, str):
        return (named,)
    return tuple(map(str, named)) if isinstance(named, list) and named else _USUAL


def _object_at(config: Mapping[str, object], place: str) -> Mapping[str, object]:
    found = config.get(place, {}) if place else config
    return found if isinstance(found, dict) else {}


def _edit(edits: ConfigEdits, count: int) -> None:
    holders = {place: _object_at(edits.config, place) for place in _PLACES}
    for place, holder in holders.items():
        if holder.get(_OFFSET):  # rows of the base's head that timm skips
            edits.edit(_OFFSET, 0, inside=place)
    counts = {place: holder[_COUNT] for place, holder in holders.items() if _COUNT in holder}
    if counts and set(counts.values()) == {count}:
        return
    for place in counts or ("",):
        edits.edit(_COUNT, count, inside=place)
    for place, holder in holders.items():
        for key in (key for key in _NAMES if holder.get(key)):
            edits.edit(key, None, inside=place)
    edits.reshaped.append(f"{count} classes")
