"""How a model stores its linear weights: (out, in), or (in, out) as transformers' Conv1D does."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.layers import Shapes, all_kinds
from lora_export.report.columns import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_export.planning.draft import Draft
    from lora_export.records import Checkpoint, Delta, Facts, Terms

# The model types of transformers 5.24 that have layers of pytorch_utils.Conv1D, and the layers.
_MODELS = frozenset({"clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"})
CONV1D_LAYERS = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})

# The model types of transformers 5.24 whose stacks of experts have is_transposed.
_STACKS_IN_OUT = frozenset({"aria", "aria_text", "gpt_oss", "openai_privacy_filter"})


def stores_in_out(base: Checkpoint, module: str) -> bool | None:
    """Whether the module's weight is stored (in, out); None where the base says no model type.

    PEFT 0.21.2 decides by the module's class: nn.Linear never, Conv1D always.
    """
    kind = base.config.get("model_type")
    if not isinstance(kind, str):
        return None
    return kind in _MODELS and module.rpartition(".")[2] in CONV1D_LAYERS


def stacks_in_out(base: Checkpoint, version: str) -> bool | None:
    """Whether `version` of PEFT reads square experts as (in, out); None where nobody knows.

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
    """Whether square weights are stored (in, out), None where nobody says it, and who says so.

    doubt: why what is said may be wrong, so that the user has to say it.
    """

    in_out: bool | None = None
    source: str = ""
    doubt: str = ""


def stored_by(
    base: Checkpoint,
    module: str,
    said: Terms,
    turned: bool | None,  # noqa: FBT001
    facts: Facts,
) -> Stored:
    """By the base, the module's other experts or PEFT's version; else by the user; else the file.

    turned: how the other experts of the module are stored, or the other modules of the adapter,
    where their shapes tell it.
    """
    certain = _certain(base, module, said, turned)
    if certain.in_out is not None:
        return certain
    hint = said.fan_in_fan_out if said.tuner != "parameter" else None
    if facts.fan_in_fan_out is not None:
        otherwise = hint is not None and hint != facts.fan_in_fan_out
        but = f", against {said.source}: it is often wrong there" if otherwise else ""
        return Stored(facts.fan_in_fan_out, f"by {facts.source}{but}")
    if said.tuner != "parameter" and turned is not bool(hint) and (hint or turned is not None):
        return Stored(hint, f"by {said.source}", doubt=_doubt(said, turned))
    if hint is not None:
        return Stored(hint, f"by {said.source}")
    return Stored(None, "by default, as nobody says it")


def _doubt(said: Terms, turned: bool | None) -> str:  # noqa: FBT001
    """PEFT 0.21.2 corrects the member by the class of the layer, which no file of weights tells."""
    value = {True: "true", False: "false", None: "not"}[said.fan_in_fan_out]
    told = f"fan_in_fan_out is {value} in {said.source}"
    if turned is None:
        return f"{told}, which PEFT obeys for Conv1D (in, out) and not for nn.Linear (out, in)"
    other = "(in, out)" if turned else "(out, in)"
    return f"{told}, and by their shapes the adapter's other modules are stored {other}"


def _certain(base: Checkpoint, module: str, said: Terms, turned: bool | None) -> Stored:  # noqa: FBT001
    if said.tuner != "parameter":
        source = f"as {base.config.get('model_type')} has them"
        return Stored(stores_in_out(base, module), source)
    if turned is not None:
        return Stored(turned, "as the module's other experts are")
    source = f"as PEFT {said.version} reads them"
    return Stored(stacks_in_out(base, said.version), source)


def square_weights(draft: Draft, deltas: Iterable[Delta]) -> list[str]:
    """How square weights are read, and who says so, in words."""
    square: dict[str, list[Delta]] = defaultdict(list)
    for delta in deltas:
        if len(delta.shape) == 2 and not delta.enable_lora and _turns(delta):  # noqa: PLR2004
            square[draft.turned_by.get((delta.adapter, delta.module), "as given")].append(delta)
    if draft.model is not None:
        return []
    found = []
    for source, listed in square.items():
        stored = {"(in, out)" if delta.fan_in_fan_out else "(out, in)" for delta in listed}
        read = f"read as Linear stored {' and '.join(sorted(stored))}, {source}"
        found.append(f"{counted(len(listed), 'square weight')} {read}")
    return found


def _turns(delta: Delta) -> bool:
    """Whether the shapes fit its kind in either orientation."""
    readings = all_kinds()[delta.kind].readings(Shapes.of(delta.factors, delta.shape))
    return len({reading.fan_in_fan_out for reading in readings}) > 1
