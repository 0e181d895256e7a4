"""A decoder that takes and gives its keys and values: one network for the prompt and each token.

A step takes the keys and values of earlier steps as plain tensors, and gives them back longer. The
prompt is a step with an empty past. One graph does both, and its weights are stored once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.generation.caches import (
    PAST,
    Layer,
    cache_arguments,
    cache_name,
    cache_of,
    layers_of,
    parameters_of,
    present_outputs,
    probe_cache,
    refuse_other_layers,
    take_past,
    without_dots,
)
from lora_export.models.generation.rewired import Rewired
from lora_export.models.network.quiet import quiet
from lora_export.records import InputSpec, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lora_export.models.hf.huggingface import HuggingFaceModel

TOTAL = "past + sequence"
"""The dimension of the attention mask."""

SHORTEST = 12
"""Tokens that a proof needs: those of the longest probe, or a prompt and some tokens after it."""


class CachedDecoder(Rewired):
    """A model source whose models take and give keys and values."""

    def __init__(self, plain: HuggingFaceModel) -> None:
        """Take the decoder of a folder.

        Raises:
            UsageError: it generates no text, keeps more than keys and values, or takes too few
                tokens for a proof.
        """
        _refuse_no_decoder(plain)
        #: Tokens that the models take in all; None where no table of positions bounds them.
        self.longest = plain.positions(plain.config.get_text_config(decoder=True))
        refuse_short(self.longest)
        layers = _probe_layers(plain)
        inputs = _inputs(plain, layers, self.longest)
        super().__init__(plain, inputs, "kv-cache", lambda model: _forward(model, len(layers)))


def refuse_short(longest: int | None) -> None:
    """Refuse a model whose table of positions ends before a proof does.

    Raises:
        UsageError: `longest`, in tokens, is below SHORTEST.
    """
    if longest is not None and longest < SHORTEST:
        message = f"the model takes {longest} tokens in all, too few for a proof"
        raise UsageError(
            message, where="--kv-cache", hint="leave --kv-cache out", cause="usage/kv-cache"
        )


def _inputs(
    plain: HuggingFaceModel, layers: Sequence[Layer], longest: int | None
) -> tuple[InputSpec, ...]:
    """List the inputs: tokens, mask, positions where forward takes them, every layer's past."""
    high = plain.config.get_text_config(decoder=True).vocab_size
    spans = {"sequence": Span(most=longest), "past": Span(most=longest)}
    new = ("batch", "sequence")
    inputs = [
        InputSpec("input_ids", "int64", new, high, spans),
        InputSpec("attention_mask", "int64", ("batch", TOTAL), 2, spans),
    ]
    if "position_ids" in parameters_of(plain):
        inputs.append(InputSpec("position_ids", "int64", new, longest, spans))
    inputs += [
        InputSpec(f"{PAST}.{number}.{part}", "float32", dims, spans=spans)
        for number, layer in enumerate(layers)
        for part, dims in layer.dims("past").items()
    ]
    return tuple(inputs)


def _refuse_no_decoder(plain: HuggingFaceModel) -> None:
    parameters, name = parameters_of(plain), plain.model_class.__name__
    generates = getattr(plain.model_class, "can_generate", lambda: False)()
    if not generates or "input_ids" not in parameters or not cache_name(parameters):
        raise UsageError(
            f"{name} generates no text with a cache of keys and values",
            where="--kv-cache",
            hint="leave --kv-cache out; or --task text-generation, if it is a decoder's checkpoint",
            cause="usage/kv-cache",
        )
    if "pixel_values" in parameters:
        raise UsageError(
            f"{name} takes images in its first step only: one graph cannot be all steps",
            where="--kv-cache",
            hint="leave --kv-cache out",
            cause="usage/kv-cache",
        )


def _probe_layers(plain: HuggingFaceModel) -> list[Layer]:
    """List the layers that the model itself puts into a cache."""
    from transformers import DynamicCache

    name = plain.model_class.__name__
    with quiet():
        refuse_other_layers(name, DynamicCache(config=plain.config))
    feed = {"input_ids": (2, 5)}
    # Without a mask, GPT-2 looks for padding in the ids. Encoders read a mask, which has no values.
    if "attention_mask" in parameters_of(plain):
        feed["attention_mask"] = (2, 5)
    _, cache = probe_cache(plain, feed)
    return layers_of(name, cache)


def _forward(model: Any, count: int) -> Callable[..., object]:
    """Make a forward that takes the past of `count` layers as tensors, and gives all by name."""
    own, arguments = model.forward, cache_arguments(model)

    def forward(input_ids: Tensor, **others: Tensor) -> dict[str, Tensor]:
        given = without_dots(others)
        cache = cache_of(take_past(given, count))
        output = own(input_ids=input_ids, **given, **arguments(cache))
        return {"logits": output.logits, **present_outputs(cache)}

    return forward
