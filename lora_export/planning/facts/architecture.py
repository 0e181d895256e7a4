"""The facts that the base's architecture gives: a module's kind, and how its weight is stored.

A loralib file has neither. config.json names the model type, and the model type decides both. The
well-known types are in a table, so that no framework is imported. transformers knows the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.embedding import KIND as EMBEDDING
from lora_export.records import Facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.records import Checkpoint, TensorSpec

    Layers = Callable[[str], Facts | None]

# The model types of transformers 5.24 that have layers of pytorch_utils.Conv1D, and the layers.
_CONV1D_MODELS = frozenset({"clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"})
CONV1D_LAYERS = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})

# Model types of transformers 5.24 whose modules are nn.Linear, nn.Embedding, Conv1D (those of
# _CONV1D_MODELS) and convolutions: a test asks transformers about each.
KNOWN_TYPES = frozenset({
    "albert", "bart", "bert", "bert-generation", "blenderbot", "bloom", "camembert", "clip",
    "codegen", "cohere", "deberta", "deberta-v2", "deit", "dinov2", "distilbert", "electra",
    "ernie", "esm", "falcon", "gemma", "gemma2", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gptj", "granite", "hubert", "layoutlm", "llama", "longformer", "m2m_100", "marian", "mbart",
    "mistral", "mixtral", "mobilebert", "modernbert", "mpnet", "mpt", "mt5", "nystromformer",
    "olmo", "olmo2", "opt", "pegasus", "persimmon", "phi", "phi3", "qwen2", "qwen3", "rembert",
    "roberta", "roformer", "siglip", "smollm3", "stablelm", "starcoder2", "t5", "umt5", "vit",
    "wav2vec2", "whisper", "xglm", "xlm-roberta",
})  # fmt: skip

# The last names of their embeddings; no layer of another kind has one of them there.
_EMBEDDINGS = frozenset({
    "embed_in", "embed_positions", "embed_tokens", "embeddings", "h_position_embeddings",
    "position_embedding", "position_embeddings", "relative_attention_bias", "shared",
    "tok_embeddings", "token_embedding", "token_type_embeddings", "w_position_embeddings",
    "word_embeddings", "wpe", "wte", "x_position_embeddings", "y_position_embeddings",
})  # fmt: skip


def stores_in_out(base: Checkpoint, module: str) -> bool | None:
    """Return whether a module's weight is stored (in, out); None where no model type is named.

    PEFT 0.21.2 decides by the module's class: nn.Linear never, Conv1D always.
    """
    kind = base.config.get("model_type")
    if not isinstance(kind, str):
        return None
    return kind in _CONV1D_MODELS and module.rpartition(".")[2] in CONV1D_LAYERS


def layer_facts(base: Checkpoint, module: str) -> Facts | None:
    """Return kind and storage order by the table; None where it lacks the base's model type."""
    kind = base.config.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN_TYPES or "auto_map" in base.config:
        return None
    source = f"config.json (model_type {kind})"
    if module.rpartition(".")[2] in _EMBEDDINGS:
        return Facts(kind=EMBEDDING.name, source=source)
    return Facts(fan_in_fan_out=stores_in_out(base, module), embeds=False, source=source)


def built_facts(
    base: Checkpoint, module: str, weight: TensorSpec, layers_of: Callable[[], Layers | None]
) -> Facts | None:
    """Return the architecture's facts about a module; None where they are not known.

    `layers_of` loads transformers. It is called only for square weights, whose orientation the
    shapes do not decide.
    """
    found = layer_facts(base, module)
    is_square = len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]
    if found is None and is_square:
        layers = layers_of()
        return layers(module) if layers else None
    return found
