"""A decoder that takes and gives its keys and values: one network for the prompt and each token.

What a step needs of earlier ones goes in as plain tensors and comes out longer. An empty past is
the prompt's own step, so that one graph does both and its weights are stored once.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.calling import FAILURES
from lora_export.models.quiet import quiet
from lora_export.models.usual_inputs import positions
from lora_export.records import InputSpec, Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from lora_export.models.huggingface import HuggingFaceModel
    from lora_export.records import Checkpoint, MergePlan, ModelFacts, TensorRef

PAST = "past_key_values"
PRESENT = "present"
TOTAL = "past + sequence"
# What the longest probe takes, and a prompt with some tokens after it.
SHORTEST = 12

# Their keys and values are all that they keep. A window is in the mask, not only in the cache.
_PLAIN_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's keys (batch, heads, n, size) and values (batch, value_heads, n, value_size)."""

    heads: int
    size: int
    value_heads: int
    value_size: int


class CachedDecoder:
    """A model source whose models take and give keys and values; see source.ModelSource.

    plain: the same models without, as transformers builds them.
    """

    def __init__(self, plain: HuggingFaceModel) -> None:
        """Of a folder's decoder.

        Raises:
            UsageError: it does not generate text, or keeps more than keys and values.
        """
        self.plain = plain
        _refuse_no_decoder(plain)
        self.layers: Sequence[Layer] = _ask_layers(plain)
        if self.longest is not None and self.longest < SHORTEST:
            message = f"the model takes {self.longest} tokens in all, too few for a proof"
            raise UsageError(message, where="--kv-cache", hint="leave --kv-cache out")

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Tokens, mask, positions where forward takes them, and the past of every layer."""
        text = self.plain.config.get_text_config(decoder=True)
        spans = {"sequence": Span(most=self.longest), "past": Span(most=self.longest)}
        inputs = [
            InputSpec("input_ids", "int64", ("batch", "sequence"), text.vocab_size, spans),
            InputSpec("attention_mask", "int64", ("batch", TOTAL), 2, spans),
        ]
        if "position_ids" in _parameters(self.plain):
            inputs.append(
                InputSpec("position_ids", "int64", ("batch", "sequence"), self.longest, spans)
            )
        for number, layer in enumerate(self.layers):
            keys = ("batch", layer.heads, "past", layer.size)
            values = ("batch", layer.value_heads, "past", layer.value_size)
            inputs.append(InputSpec(f"{PAST}.{number}.key", "float32", keys, spans=spans))
            inputs.append(InputSpec(f"{PAST}.{number}.value", "float32", values, spans=spans))
        return tuple(inputs)

    @property
    def longest(self) -> int | None:
        """How many tokens the model takes in all; None where no table of positions bounds them."""
        return positions(self.plain.config.get_text_config(decoder=True))

    def facts(self) -> ModelFacts:
        """See source.ModelSource.facts."""
        return self.plain.facts()

    def load(
        self, checkpoint: Checkpoint, *, full: Mapping[str, TensorRef], untied: Sequence[str]
    ) -> nn.Module:
        """See source.ModelSource.load; the model's forward has the inputs above."""
        model = self.plain.load(checkpoint, full=full, untied=untied)
        model.forward = _decoding_forward(model, len(self.layers))
        return model

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """See source.ModelSource.load_live."""
        return self.plain.load_live(plan)

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """See source.ModelSource.module."""
        return self.plain.module(model, name)


def _parameters(plain: HuggingFaceModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(plain.model_class.forward).parameters


def _cache_name(parameters: Mapping[str, object]) -> str | None:
    """What forward calls the cache: transformers 5.24 has another name than those before."""
    return next((name for name in ("cache", PAST) if name in parameters), None)


def _refuse_no_decoder(plain: HuggingFaceModel) -> None:
    parameters, name = _parameters(plain), plain.model_class.__name__
    if getattr(plain.config, "is_encoder_decoder", False):
        raise UsageError(
            f"{name} is an encoder with a decoder, whose keys and values are not exported yet",
            where="--kv-cache",
            hint="leave --kv-cache out: the graph then takes all of decoder_input_ids every time",
        )
    generates = getattr(plain.model_class, "can_generate", lambda: False)()
    if not generates or "input_ids" not in parameters or not _cache_name(parameters):
        raise UsageError(
            f"{name} generates no text with a cache of keys and values",
            where="--kv-cache",
            hint="leave --kv-cache out; or --task text-generation, if it is a decoder's checkpoint",
        )
    if "pixel_values" in parameters:
        raise UsageError(
            f"{name} takes images into its text, which only its first step does: no one graph",
            where="--kv-cache",
            hint="leave --kv-cache out",
        )


def _ask_layers(plain: HuggingFaceModel) -> list[Layer]:
    """What the model itself puts into a cache, asked of it without weights.

    Raises:
        UsageError: a layer keeps something else than keys and values.
    """
    import torch

    name = plain.model_class.__name__
    _refuse_other_layers(name, _planned_layers(plain.config))
    model: Any = plain.skeleton().eval()
    with suppress(AttributeError, ValueError):  # a model without experts
        model.set_experts_implementation("batched_mm")  # the usual ways look at values
    try:
        with quiet(), torch.device("meta"), torch.no_grad():
            answer = model(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=True)
            cache: Any = answer.get("cache", None)
            layers = (answer[PAST] if cache is None else cache).layers
    except FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"what {name} keeps in its cache cannot be told: {reason}", where="--kv-cache"
        ) from error
    _refuse_other_layers(name, [type(layer).__name__ for layer in layers])
    return [
        Layer(
            layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[1], layer.values.shape[3]
        )
        for layer in layers
    ]


def _planned_layers(config: Any) -> list[str]:  # noqa: ANN401 - transformers is untyped here
    from transformers import DynamicCache

    with quiet():
        return [type(layer).__name__ for layer in DynamicCache(config=config).layers]


def _refuse_other_layers(name: str, kinds: Sequence[str]) -> None:
    other = sorted({kind for kind in kinds if kind not in _PLAIN_LAYERS})
    if other:
        raise UsageError(
            f"{name} keeps {' and '.join(other)} in its cache, which keys and values cannot hold",
            where="--kv-cache",
            hint="leave --kv-cache out",
        )


def _decoding_forward(model: Any, count: int) -> Any:  # noqa: ANN401 - transformers is untyped here
    """`model.forward` with `count` layers of past by name, as tensors, and all results by name."""
    own = model.forward
    parameters = inspect.signature(own).parameters
    slot = str(_cache_name(parameters))
    asked = {"use_cache": True} if "use_cache" in parameters else {}

    def forward(input_ids: Tensor, **others: Tensor) -> dict[str, Tensor]:
        # The tracer's names of parameters have no dots.
        given = {name.replace(".", "_"): tensor for name, tensor in others.items()}
        past = [
            (given.pop(f"{PAST}_{number}_key"), given.pop(f"{PAST}_{number}_value"))
            for number in range(count)
        ]
        cache = _filled(past)
        answer = own(input_ids=input_ids, **given, **{slot: cache}, **asked)
        present = {
            f"{PRESENT}.{number}.{part}": tensor
            for number, layer in enumerate(cache.layers)
            for part, tensor in (("key", layer.keys), ("value", layer.values))
        }
        return {"logits": answer.logits, **present}

    return forward


def _filled(past: Sequence[tuple[Tensor, Tensor]]) -> Any:  # noqa: ANN401 - transformers' Cache
    """A cache that grows, and holds this past; a window is left to the mask, which has it too."""
    from transformers import cache_utils

    cache: Any = cache_utils.DynamicCache()
    grows: Any = cache_utils.DynamicLayer
    for keys, values in past:
        layer = grows()
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
