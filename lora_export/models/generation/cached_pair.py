"""An encoder and its decoder as two networks, between which keys and values go as plain tensors.

Every layer of the decoder makes keys and values of the encoder's result. Here the encoder's network
makes them, once for all steps, and only that network holds their projections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.generation.cached_decoder import refuse_short
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
    take_past,
    without_dots,
)
from lora_export.models.generation.rewired import Rewired, Wrapper
from lora_export.records import InputSpec, Span, example_sizes, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lora_export.models.hf.huggingface import HuggingFaceModel

IDS = "decoder_input_ids"
"""The decoder's input of new tokens."""
MASK = "encoder_attention_mask"
"""The decoder's input of the mask over the encoder's positions."""
ENCODER, DECODER = "encoder", "decoder"
_ENCODED = ("input_ids", "attention_mask", "input_features", "pixel_values")
"""What encoders take: the names that the whole model has for it too."""


class CachedPair(Wrapper):
    """A model source of plain encoder-decoders, with the two networks that are exported of each."""

    def __init__(self, plain: HuggingFaceModel) -> None:
        """Take the encoder-decoder of a folder.

        Raises:
            UsageError: it does not generate, keeps more than keys and values, or takes too few
                tokens for a proof.
        """
        super().__init__(plain, plain.inputs)
        _refuse_no_pair(plain)
        tokens = next(spec for spec in plain.inputs if spec.name == IDS)
        #: Tokens that the decoder can generate in all; None where no table of positions ends.
        self.longest = tokens.spans["answer"].most
        refuse_short(self.longest)
        encoded = tuple(spec for spec in plain.inputs if spec.name != IDS)
        _refuse_open_frames(plain, encoded[0])
        own, crossed, hidden = _probe_layers(plain, encoded)
        length: int | str = hidden[1] if isinstance(encoded[0].dims[-1], int) else "sequence"
        inputs = _decoder_inputs(
            tokens, own, crossed, length, masked="attention_mask" in [s.name for s in encoded]
        )
        #: Gives last_hidden_state, and the keys and values that the decoder attends to.
        self.encoder = Rewired(plain, encoded, "kv-cache, encoder", _encoder_forward)
        #: Takes these, its own past and new tokens.
        self.decoder = Rewired(
            plain,
            inputs,
            "kv-cache, decoder",
            lambda model: _decoder_forward(model, len(own), hidden[2]),
        )

    def parts(self) -> dict[str, Rewired]:
        """Return both networks, by the stems of their files."""
        return {f"{ENCODER}_model": self.encoder, f"{DECODER}_model": self.decoder}


def _refuse_no_pair(plain: HuggingFaceModel) -> None:
    parameters, name = parameters_of(plain), plain.model_class.__name__
    generates = getattr(plain.model_class, "can_generate", lambda: False)()
    known = any(spec.name == IDS for spec in plain.inputs)
    if not generates or not known or not cache_name(parameters):
        raise UsageError(
            f"{name} generates nothing with a cache of keys and values",
            where="--kv-cache",
            hint="leave --kv-cache out; or --task text2text-generation, where the head is there",
            cause="usage/kv-cache",
        )


def _refuse_open_frames(plain: HuggingFaceModel, first: InputSpec) -> None:
    """Refuse an encoder that shortens a sound of any length: the mask has another length then.

    Raises:
        UsageError: the frames of its first input are a dynamic dimension, as of Speech2Text.
    """
    if first.name == "input_features" and any(
        isinstance(dim, str) and dim != "batch" for dim in first.dims
    ):
        raise UsageError(
            f"the encoder of {plain.model_class.__name__} shortens sounds of any length, so its "
            "decoder cannot tell which of its positions a mask hides",
            where="--kv-cache",
            hint="leave --kv-cache out",
            cause="usage/kv-cache",
        )


def _probe_layers(
    plain: HuggingFaceModel, encoded: Sequence[InputSpec]
) -> tuple[list[Layer], list[Layer], tuple[int, ...]]:
    """Return the layers of the decoder's own and cross-attention caches, and a shape.

    The shape is that of the encoder's last hidden state: (batch, positions, width). encoded: the
    encoder's inputs.
    """
    name, first = plain.model_class.__name__, encoded[0]
    sizes = example_sizes(encoded)
    shape = tuple(size_of(dim, sizes) for dim in first.dims)
    output, cache = probe_cache(plain, {first.name: shape, IDS: (shape[0], 5)})
    sides = [getattr(cache, f"{side}_attention_cache", None) for side in ("self", "cross")]
    if None in sides:
        raise UsageError(
            f"{name} keeps a {type(cache).__name__}, and not keys and values in two caches",
            where="--kv-cache",
            hint="leave --kv-cache out",
            cause="usage/kv-cache",
        )
    own, crossed = (layers_of(name, side) for side in sides)
    return own, crossed, tuple(output.encoder_last_hidden_state.shape)


def _decoder_inputs(
    tokens: InputSpec,
    own: Sequence[Layer],
    crossed: Sequence[Layer],
    length: int | str,
    *,
    masked: bool,
) -> tuple[InputSpec, ...]:
    spans = {**tokens.spans, "past": Span(most=tokens.spans["answer"].most)}
    inputs = [InputSpec(IDS, tokens.dtype, tokens.dims, tokens.high, spans)]
    if masked:
        inputs.append(InputSpec(MASK, "int64", ("batch", length), 2, spans))
    for side, layers, size in ((DECODER, own, "past"), (ENCODER, crossed, length)):
        inputs += [
            InputSpec(f"{PAST}.{number}.{side}.{part}", "float32", dims, spans=spans)
            for number, layer in enumerate(layers)
            for part, dims in layer.dims(size).items()
        ]
    return tuple(inputs)


def _encoder_forward(model: Any) -> Callable[..., object]:
    """Make a forward that encodes, and gives the decoder's keys and values of the result too."""
    own, arguments, encoder = model.forward, cache_arguments(model), model.get_encoder()

    def forward(**given: Tensor) -> dict[str, Tensor]:
        import torch

        encoded = encoder(**given)
        hidden = encoded.last_hidden_state
        # One step of the decoder fills the cache. Its keys do not depend on the tokens.
        ids = torch.zeros((hidden.shape[0], 2), dtype=torch.long)
        cache = _cache_pair([], [])
        mask = {key: value for key, value in given.items() if key == "attention_mask"}
        own(encoder_outputs=encoded, decoder_input_ids=ids, **mask, **arguments(cache))
        crossed = present_outputs(cache.cross_attention_cache, ENCODER)
        return {"last_hidden_state": hidden, **crossed}

    forward.__signature__ = _signature(model, encoder)  # type: ignore[attr-defined]
    return forward


def _signature(model: Any, encoder: Any) -> Any:
    """Make the signature of the encoder's inputs, as far as the whole model takes them."""
    import inspect

    wanted = inspect.signature(model.forward).parameters
    known = inspect.signature(encoder.forward).parameters
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
            for name in known
            if name in wanted and name in _ENCODED
        ]
    )


def _decoder_forward(model: Any, count: int, width: int) -> Callable[..., object]:
    """Make a forward of the decoder alone: the encoder's keys and values are inputs.

    count: layers. width: numbers in a hidden state of the encoder.
    """
    own, arguments = model.forward, cache_arguments(model)

    def forward(decoder_input_ids: Tensor, **others: Tensor) -> dict[str, Tensor]:
        from transformers.modeling_outputs import BaseModelOutput

        given = without_dots(others)
        past, crossed = (take_past(given, count, side) for side in (DECODER, ENCODER))
        cache = _cache_pair(past, crossed)
        keys = crossed[0][0]
        # The layers read only the size of the hidden states: their keys are in the cache already.
        hidden: Any = BaseModelOutput(keys.new_zeros((keys.shape[0], keys.shape[2], width)))
        mask = {"attention_mask": given[MASK]} if MASK in given else {}
        output = own(
            encoder_outputs=hidden, decoder_input_ids=decoder_input_ids, **mask, **arguments(cache)
        )
        return {"logits": output.logits, **present_outputs(cache.self_attention_cache, DECODER)}

    return forward


def _cache_pair(
    past: Sequence[tuple[Tensor, Tensor]], crossed: Sequence[tuple[Tensor, Tensor]]
) -> Any:
    """Make the cache of an encoder-decoder from its own past and the encoder's keys and values."""
    from transformers import cache_utils

    pair: Any = cache_utils.EncoderDecoderCache
    return pair(cache_of(past), cache_of(crossed))
