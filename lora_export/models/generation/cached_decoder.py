"""A decoder that takes and gives its keys and values: one network for the prompt and each token.

What a step needs of earlier ones goes in as plain tensors and comes out longer. An empty past is
the prompt's own step, so that one graph does both and its weights are stored once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.generation.caches import (
    PAST,
    Layer,
    Rewired,
    ask_cache,
    cache_name,
    filled,
    layers_of,
    parameters_of,
    present,
    refuse_other_layers,
    take_past,
    taking_cache,
    traced_names,
)
from lora_export.models.inputs.usual_inputs import positions
from lora_export.models.network.quiet import quiet
from lora_export.records import InputSpec, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lora_export.models.hf.huggingface import HuggingFaceModel

TOTAL = "past + sequence"
# What the longest probe takes, and a prompt with some tokens after it.
SHORTEST = 12


class CachedDecoder(Rewired):
    """A model source whose models take and give keys and values.

    plain: the same models without, as transformers builds them. longest: how many tokens they take
    in all; None where no table of positions bounds them.
    """

    def __init__(self, plain: HuggingFaceModel) -> None:
        """Of a folder's decoder.

        Raises:
            UsageError: it does not generate text, or keeps more than keys and values.
        """
        _refuse_no_decoder(plain)
        self.longest = positions(plain.config.get_text_config(decoder=True))
        refuse_short(self.longest)
        layers = _ask_layers(plain)
        inputs = _inputs(plain, layers, self.longest)
        super().__init__(plain, inputs, "kv-cache", lambda model: _decoding(model, len(layers)))


def refuse_short(longest: int | None) -> None:
    """A model whose table of positions ends before a proof does."""
    if longest is not None and longest < SHORTEST:
        message = f"the model takes {longest} tokens in all, too few for a proof"
        raise UsageError(message, where="--kv-cache", hint="leave --kv-cache out")


def _inputs(
    plain: HuggingFaceModel, layers: Sequence[Layer], longest: int | None
) -> tuple[InputSpec, ...]:
    """Tokens, mask, positions where forward takes them, and the past of every layer."""
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
        )
    if "pixel_values" in parameters:
        raise UsageError(
            f"{name} takes images into its text, which only its first step does: no one graph",
            where="--kv-cache",
            hint="leave --kv-cache out",
        )


def _ask_layers(plain: HuggingFaceModel) -> list[Layer]:
    """What the model itself puts into a cache."""
    from transformers import DynamicCache

    name = plain.model_class.__name__
    with quiet():
        refuse_other_layers(name, DynamicCache(config=plain.config))
    _, cache = ask_cache(plain, {"input_ids": (2, 5)})
    return layers_of(name, cache)


def _decoding(model: Any, count: int) -> Callable[..., object]:
    """`model.forward` with `count` layers of past by name, as tensors, and all results by name."""
    own, taking = model.forward, taking_cache(model)

    def forward(input_ids: Tensor, **others: Tensor) -> dict[str, Tensor]:
        given = traced_names(others)
        cache = filled(take_past(given, count))
        answer = own(input_ids=input_ids, **given, **taking(cache))
        return {"logits": answer.logits, **present(cache)}

    return forward
