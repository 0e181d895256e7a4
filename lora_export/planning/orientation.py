"""How a model stores its linear weights: (out, in), or (in, out) as transformers' Conv1D does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_export.records import Checkpoint

# The model types of transformers 5.24 that have layers of pytorch_utils.Conv1D, and the layers.
_MODELS = frozenset({"clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"})
_LAYERS = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})

# The model types of transformers 5.24 whose stacks of experts have is_transposed.
_STACKS_IN_OUT = frozenset({"aria", "aria_text", "gpt_oss", "openai_privacy_filter"})


def stores_in_out(base: Checkpoint, module: str) -> bool | None:
    """Whether the module's weight is stored (in, out); None where the base says no model type.

    PEFT 0.21.2 decides by the module's class: nn.Linear never, Conv1D always.
    """
    kind = base.config.get("model_type")
    if not isinstance(kind, str):
        return None
    return kind in _MODELS and module.rpartition(".")[2] in _LAYERS


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
