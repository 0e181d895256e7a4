"""How a model stores its linear weights: (out, in), or (in, out) as transformers' Conv1D does."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.layers import Shapes, all_kinds
from lora_export.planning.facts.architecture import stores_in_out
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_export.records import Checkpoint, Delta, Facts, Terms

# The model types of transformers 5.24 whose stacks of experts have is_transposed.
_STACKS_IN_OUT = frozenset({"aria", "aria_text", "gpt_oss", "openai_privacy_filter"})


def stacks_in_out(base: Checkpoint, version: str) -> bool | None:
    """Return whether `version` of PEFT reads square experts as (in, out); None if not known.

    tuners.lora.layer.ParamWrapper of PEFT 0.18.1 does always; of 0.19.0 where the module is not
    is_transposed, the wrong way round; of 0.19.1 to 0.21.2 where it is.
    """
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", version)
    if not numbers:
        return None
    release = tuple(int(number or 0) for number in numbers.groups())
    if release < (0, 19):
        return True
    kind = base.config.get("model_type")
    if not isinstance(kind, str):
        return None
    return (kind in _STACKS_IN_OUT) == (release > (0, 19, 0))


@dataclass(frozen=True, slots=True)
class Stored:
    """How square weights are stored."""

    #: Whether they are stored (in, out); None where nothing shows it.
    in_out: bool | None = None
    #: The source of this fact, in words.
    source: str = ""
    #: Why the source may be wrong, so that the user must decide; "" for a source to trust.
    doubt: str = ""


def stored_by(
    base: Checkpoint,
    module: str,
    terms: Terms,
    facts: Facts,
    *,
    turned: bool | None,
) -> Stored:
    """Decide how square weights of a module are stored.

    The sources are used in this order, since the first ones cannot be wrong: the base's
    architecture, the module's other experts, PEFT's version, then the user, then the adapter's
    configuration.

    Args:
        base: names the architecture.
        module: the model's name of the module.
        terms: the terms of the adapter's configuration.
        turned: whether the other experts of the module, or the other modules of the adapter, are
            stored (in, out); None where their shapes do not show it.
        facts: the user's facts about the module.
    """
    certain = _certain(base, module, terms, turned=turned)
    if certain.in_out is not None:
        return certain
    hint = terms.fan_in_fan_out if terms.tuner != "parameter" else None
    if facts.fan_in_fan_out is not None:
        otherwise = hint is not None and hint != facts.fan_in_fan_out
        but = f", against {terms.source}: it is often wrong there" if otherwise else ""
        return Stored(facts.fan_in_fan_out, f"by {facts.source}{but}")
    if terms.tuner != "parameter" and turned is not bool(hint) and (hint or turned is not None):
        return Stored(hint, f"by {terms.source}", doubt=_doubt(terms, turned=turned))
    if hint is not None:
        return Stored(hint, f"by {terms.source}")
    return Stored(None, "by default, as no source decides it")


def _doubt(terms: Terms, *, turned: bool | None) -> str:
    """Return why fan_in_fan_out of the configuration may be wrong.

    PEFT 0.21.2 corrects this member by the class of the layer, which no file of weights shows.
    """
    value = {True: "true", False: "false", None: "not"}[terms.fan_in_fan_out]
    fact = f"fan_in_fan_out is {value} in {terms.source}"
    if turned is None:
        return f"{fact}, which PEFT obeys for Conv1D (in, out) and not for nn.Linear (out, in)"
    other = "(in, out)" if turned else "(out, in)"
    return f"{fact}, and by their shapes the adapter's other modules are stored {other}"


def _certain(base: Checkpoint, module: str, terms: Terms, *, turned: bool | None) -> Stored:
    if terms.tuner != "parameter":
        source = f"as {base.config.get('model_type')} has them"
        return Stored(stores_in_out(base, module), source)
    if turned is not None:
        return Stored(turned, "as the module's other experts are")
    source = f"as PEFT {terms.version} reads them"
    return Stored(stacks_in_out(base, terms.version), source)


def square_weights(deltas: Iterable[Delta], turned_by: Mapping[tuple[str, str], str]) -> list[str]:
    """Describe how square weights are read, and the source of this.

    turned_by: the source, by adapter and module.
    """
    square: dict[str, list[Delta]] = defaultdict(list)
    for delta in deltas:
        if len(delta.shape) == 2 and not delta.enable_lora and _turns(delta):
            square[turned_by.get((delta.adapter, delta.module), "as given")].append(delta)
    found = []
    for source, listed in square.items():
        stored = {"(in, out)" if delta.fan_in_fan_out else "(out, in)" for delta in listed}
        read = f"read as Linear stored {' and '.join(sorted(stored))}, {source}"
        found.append(f"{counted(len(listed), 'square weight')} {read}")
    return found


def _turns(delta: Delta) -> bool:
    """Return whether the shapes fit its kind in either orientation."""
    readings = all_kinds()[delta.kind].readings(Shapes.of(delta.factors, delta.shape))
    return len({reading.fan_in_fan_out for reading in readings}) > 1
