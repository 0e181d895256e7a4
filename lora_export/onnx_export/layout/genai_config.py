"""genai_config.json: by it onnxruntime-genai finds a decoder's graph, its past and its tokens.

The members are those that onnxruntime-genai 0.18 reads (`src/config.cpp`), and that its own builder
writes (`models/builders/base.py`, `make_genai_config`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GENAI_CONFIG = "genai_config.json"
_KEY = re.compile(r"past_key_values\.\d+\.key")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model")
"""What the architectures call their most positions, the heads of a query, and a hidden state."""
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
"""The members of generation_config.json that onnxruntime-genai has under the same names."""


def genai_config(
    graph: Mapping[str, Any], file: str, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of genai_config.json for a decoder that takes and gives its past.

    The type is "decoder", onnxruntime-genai's for any text decoder: the names of architectures that
    it knows select its own ways to feed them.

    Args:
        graph: the interface of the graph; see onnx_export.file.interface.
        file: the graph's file inside the folder.
        config: config.json.
        generation: generation_config.json; empty where there is none.

    Raises:
        UsageError: the graph takes no past, or the model names no end.
    """
    inputs = {value["name"]: value["dims"] for value in graph["inputs"]}
    outputs = {value["name"]: value["dims"] for value in graph["outputs"]}
    keys = [dims for name, dims in inputs.items() if _KEY.fullmatch(name)]
    if not keys:
        raise refuse_without_cache()
    text = {**config, **_table(config.get("text_config"))}
    named = ("input_ids", "attention_mask", "position_ids")
    context = _whole(text, _CONTEXT)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": file,
        "head_size": keys[0][3],
        "hidden_size": _whole(text, _WIDTH),
        "inputs": {
            **{name: name for name in named if name in inputs},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": _whole(text, _HEADS),
        "num_hidden_layers": len(keys),
        "num_key_value_heads": keys[0][1],
    }
    model = {
        **special_tokens(config, generation),
        "context_length": context,
        "decoder": _given(decoder),
        "type": "decoder",
        "vocab_size": outputs["logits"][2],
    }
    search = {
        **{name: generation.get(name) for name in _SEARCH},
        "max_length": context,
        # The graph gives the past with the new keys and values behind it, in other memory.
        "past_present_share_buffer": False,
    }
    return {"model": _given(model), "search": _given(search)}


def refuse_without_cache() -> UsageError:
    """Return the refusal of a graph that onnxruntime-genai could not run step by step."""
    return UsageError(
        "onnxruntime-genai runs graphs that take and give their past",
        where="--layout genai",
        hint="add --kv-cache",
        cause="usage/options-contradict",
    )


def special_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special tokens; padding is an end where the model has none of its own.

    The arguments are those of `genai_config`.

    Raises:
        UsageError: the model names no end, so that onnxruntime-genai would end at token 0, or at
            the padding.
    """
    # A null says nothing: it must not hide a token that another file names.
    known = {**config, **_given(_table(config.get("text_config"))), **_given(generation)}
    end, pad = known.get("eos_token_id"), known.get("pad_token_id")
    ends = end if isinstance(end, list) else [] if end is None else [end]
    if not ends:
        raise UsageError(
            "no eos_token_id is in config.json or generation_config.json, and onnxruntime-genai "
            "would end at token 0",
            where="--layout genai",
            hint="add eos_token_id to generation_config.json of the base",
            cause="usage/missing-fact",
        )
    return {
        "bos_token_id": known.get("bos_token_id"),
        "eos_token_id": end,
        "pad_token_id": ends[0] if pad is None else pad,
    }


def _whole(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """Return the first of these members that is a whole number."""
    found = (config.get(name) for name in names)
    return next((one for one in found if type(one) is int), None)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value is not None}
