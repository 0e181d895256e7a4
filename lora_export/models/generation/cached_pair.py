"""An encoder and its decoder as two networks, between which keys and values go as plain tensors.

What the decoder asks of the encoder's result are the keys and values that every layer makes of it.
The encoder's network makes them, once for all steps, so their projections are in that one alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.generation.cached_decoder import refuse_short
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
    take_past,
    taking_cache,
    traced_names,
)
from lora_export.records import InputSpec, Span, example_sizes, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from lora_export.models.hf.huggingface import HuggingFaceModel
    from lora_export.records import Checkpoint, MergePlan, ModelFacts, TensorRef

IDS = "decoder_input_ids"
MASK = "encoder_attention_mask"
ENCODER, DECODER = "encoder", "decoder"


class CachedPair:
    """A model source of plain encoder-decoders, with the two networks that are exported of each.

    encoder: gives last_hidden_state and the keys and values that the decoder looks at. decoder:
    takes them, its own past and new tokens. longest: how many tokens it can say in all, or None.
    """

    def __init__(self, plain: HuggingFaceModel) -> None:
        """Of a folder's encoder-decoder.

        Raises:
            UsageError: it does not generate, or keeps more than keys and values.
        """
        self.plain = plain
        self.inputs = plain.inputs
        _refuse_no_pair(plain)
        answer = next(spec for spec in plain.inputs if spec.name == IDS)
        self.longest = answer.spans["answer"].most
        refuse_short(self.longest)
        heard = tuple(spec for spec in plain.inputs if spec.name != IDS)
        own, crossed, seen = _ask(plain, heard)
        length: int | str = seen[1] if isinstance(heard[0].dims[-1], int) else "sequence"
        inputs = _decoder_inputs(
            answer, own, crossed, length, masked="attention_mask" in [s.name for s in heard]
        )
        self.encoder = Rewired(plain, heard, "kv-cache, encoder", _encoding)
        self.decoder = Rewired(
            plain, inputs, "kv-cache, decoder", lambda model: _answering(model, len(own), seen[2])
        )

    def parts(self) -> dict[str, Rewired]:
        """Both networks, by the names of their files."""
        return {f"{ENCODER}_model": self.encoder, f"{DECODER}_model": self.decoder}

    def facts(self) -> ModelFacts:
        """See source.ModelSource.facts."""
        return self.plain.facts()

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """See source.ModelSource.load: the whole model, as transformers builds it."""
        return self.plain.load(checkpoint, full=full, untied=untied, dtype=dtype)

    def blank(
        self, checkpoint: Checkpoint, *, untied: Sequence[str], dtype: str = "float32"
    ) -> nn.Module:
        """See source.ModelSource.blank."""
        return self.plain.blank(checkpoint, untied=untied, dtype=dtype)

    def identity(self, checkpoint: Checkpoint) -> dict[str, object]:
        """See source.ModelSource.identity."""
        return self.plain.identity(checkpoint)

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """See source.ModelSource.load_live."""
        return self.plain.load_live(plan)

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """See source.ModelSource.module."""
        return self.plain.module(model, name)


def _refuse_no_pair(plain: HuggingFaceModel) -> None:
    parameters, name = parameters_of(plain), plain.model_class.__name__
    generates = getattr(plain.model_class, "can_generate", lambda: False)()
    known = any(spec.name == IDS for spec in plain.inputs)
    if not generates or not known or not cache_name(parameters):
        raise UsageError(
            f"{name} generates nothing with a cache of keys and values",
            where="--kv-cache",
            hint="leave --kv-cache out; or --task text2text-generation, where the head is there",
        )


def _ask(
    plain: HuggingFaceModel, heard: Sequence[InputSpec]
) -> tuple[list[Layer], list[Layer], tuple[int, ...]]:
    """Layers of the decoder's own cache and of what it looks at; the encoder's result's shape."""
    name, first = plain.model_class.__name__, heard[0]
    sizes = example_sizes(heard)
    shape = tuple(size_of(dim, sizes) for dim in first.dims)
    answer, cache = ask_cache(plain, {first.name: shape, IDS: (shape[0], 5)})
    sides = [getattr(cache, f"{side}_attention_cache", None) for side in ("self", "cross")]
    if None in sides:
        raise UsageError(
            f"{name} keeps a {type(cache).__name__}, which is not known",
            where="--kv-cache",
            hint="leave --kv-cache out",
        )
    own, crossed = (layers_of(name, side) for side in sides)
    return own, crossed, tuple(answer.encoder_last_hidden_state.shape)


def _decoder_inputs(
    answer: InputSpec,
    own: Sequence[Layer],
    crossed: Sequence[Layer],
    length: int | str,
    *,
    masked: bool,
) -> tuple[InputSpec, ...]:
    spans = {**answer.spans, "past": Span(most=answer.spans["answer"].most)}
    inputs = [InputSpec(IDS, answer.dtype, answer.dims, answer.high, spans)]
    if masked:
        inputs.append(InputSpec(MASK, "int64", ("batch", length), 2, spans))
    for side, layers, size in ((DECODER, own, "past"), (ENCODER, crossed, length)):
        inputs += [
            InputSpec(f"{PAST}.{number}.{side}.{part}", "float32", dims, spans=spans)
            for number, layer in enumerate(layers)
            for part, dims in layer.dims(size).items()
        ]
    return tuple(inputs)


def _encoding(model: Any) -> Callable[..., object]:
    """The encoder, and what the decoder's layers make of its result while they say something."""
    own, taking, encoder = model.forward, taking_cache(model), model.get_encoder()

    def forward(**given: Tensor) -> dict[str, Tensor]:
        import torch

        heard = encoder(**given)
        hidden = heard.last_hidden_state
        said = torch.zeros((hidden.shape[0], 2), dtype=torch.long)  # no matter what
        cache = _pair([], [])
        mask = {key: value for key, value in given.items() if key == "attention_mask"}
        own(encoder_outputs=heard, decoder_input_ids=said, **mask, **taking(cache))
        crossed = present(cache.cross_attention_cache, ENCODER)
        return {"last_hidden_state": hidden, **crossed}

    forward.__signature__ = _signature(model, encoder)  # type: ignore[attr-defined]
    return forward


def _signature(model: Any, encoder: Any) -> Any:
    """The encoder's own parameters that the whole model has as well."""
    import inspect

    wanted = inspect.signature(model.forward).parameters
    known = inspect.signature(encoder.forward).parameters
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
            for name in known
            if name in wanted and name in ("input_ids", "attention_mask", "input_features")
        ]
    )


def _answering(model: Any, count: int, width: int) -> Callable[..., object]:
    """The decoder, whose encoder has been heard: only its keys and values are looked at."""
    own, taking = model.forward, taking_cache(model)

    def forward(decoder_input_ids: Tensor, **others: Tensor) -> dict[str, Tensor]:
        from transformers.modeling_outputs import BaseModelOutput

        given = traced_names(others)
        mine, theirs = (take_past(given, count, side) for side in (DECODER, ENCODER))
        cache = _pair(mine, theirs)
        keys = theirs[0][0]
        # The layers ask for its size, and no more: they have made their keys of it already.
        heard: Any = BaseModelOutput(keys.new_zeros((keys.shape[0], keys.shape[2], width)))
        mask = {"attention_mask": given[MASK]} if MASK in given else {}
        answer = own(
            encoder_outputs=heard, decoder_input_ids=decoder_input_ids, **mask, **taking(cache)
        )
        return {"logits": answer.logits, **present(cache.self_attention_cache, DECODER)}

    return forward


def _pair(mine: Sequence[tuple[Tensor, Tensor]], theirs: Sequence[tuple[Tensor, Tensor]]) -> Any:
    from transformers import cache_utils

    pair: Any = cache_utils.EncoderDecoderCache
    return pair(filled(mine), filled(theirs))
