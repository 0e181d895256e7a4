"""How a model stores its linear weights: (out, in), or (in, out) as transformers' Conv1D does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_export.records import Checkpoint

# The model types of transformers 5.24 that have layers of pytorch_utils.Conv1D, and the layers.
_MODELS = frozenset({"clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"})
_LAYERS = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})


def stores_in_out(base: Checkpoint, module: str) -> bool | None:
    """Whether the module's weight is stored (in, out); None where the base says no model type.

    PEFT 0.21.2 decides by the module's class: nn.Linear never, Conv1D always.
    """
    kind = base.config.get("model_type")
    if not isinstance(kind, str):
        return None
    return kind in _MODELS and module.rpartition(".")[2] in _LAYERS
