"""What a model of transformers takes when nobody describes its inputs: by forward and config."""

from __future__ import annotations

import inspect
from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.records import InputSpec, Span

if TYPE_CHECKING:
    from collections.abc import Container

TEXT = ("batch", "sequence")
SOUND = ("batch", "samples")
ANSWER = ("batch", "answer")


def usual_inputs(model_class: Any, config: Any, label: str) -> tuple[InputSpec, ...]:
    """The inputs under the names of transformers' forward, batch and length dynamic.

    Token ids and masks, images, sounds, a text about images, and beside an encoder what its decoder
    has said so far. Lengths are bounded as the model's table of positions is.

    Raises:
        UsageError: the model takes something else; `label` is where.
    """
    parameters = inspect.signature(model_class.forward).parameters
    inputs = _first_inputs(parameters, config)
    if not inputs:
        raise UsageError(
            f"the inputs of {model_class.__name__} are not known",
            where=label,
            hint="--input 'name=dtype[dim,dim]<high' for each of them",
        )
    if "decoder_input_ids" in parameters and getattr(config, "is_encoder_decoder", False):
        return (*inputs, _answer(config))
    return inputs


def _first_inputs(parameters: Container[str], config: Any) -> tuple[InputSpec, ...]:
    if "input_ids" in parameters:
        return _text_inputs(config, parameters)
    if "input_features" in parameters and _has(config, "num_mel_bins", "max_source_positions"):
        frames = 2 * config.max_source_positions  # Whisper takes all of them, padded
        return (InputSpec("input_features", "float32", ("batch", config.num_mel_bins, frames)),)
    if "input_values" in parameters:
        return _sound(config, parameters)
    return (_image(config),) if "pixel_values" in parameters else ()


def _has(config: object, *names: str) -> bool:
    return all(hasattr(config, name) for name in names)


def _image(config: Any, batch: int | str = "batch") -> InputSpec:
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = getattr(config, "num_channels", 3)
    return InputSpec("pixel_values", "float32", (batch, channels, height, width))


def _sound(config: Any, parameters: Container[str]) -> tuple[InputSpec, ...]:
    """A spectrogram of one size, or a wave, which must be longer than one step of its layers sees.

    The models without layer norm in these were trained without a mask (Wav2Vec2Model's page).
    """
    if _has(config, "num_mel_bins", "max_length"):
        return (
            InputSpec("input_values", "float32", ("batch", config.max_length, config.num_mel_bins)),
        )
    if not _has(config, "conv_kernel", "conv_stride"):
        return ()
    strides = [prod(config.conv_stride[:place]) for place in range(len(config.conv_stride))]
    seen = zip(config.conv_kernel, strides, strict=True)
    spans = {"samples": Span(unit=1 + sum((kernel - 1) * stride for kernel, stride in seen))}
    wave = InputSpec("input_values", "float32", SOUND, spans=spans)
    if "attention_mask" in parameters and getattr(config, "feat_extract_norm", "") == "layer":
        return (wave, InputSpec("attention_mask", "int64", SOUND, 2, spans=spans))
    return (wave,)


def _answer(config: Any) -> InputSpec:
    """What a decoder beside an encoder has said so far."""
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_target_positions", None) or positions(text)
    spans = {"answer": Span(most=most)}
    return InputSpec("decoder_input_ids", "int64", ANSWER, text.vocab_size, spans)


def _text_inputs(config: Any, parameters: Container[str]) -> tuple[InputSpec, ...]:
    text = config.get_text_config()
    image = _image_places(config) if "pixel_values" in parameters else None
    # A model that puts images into the text takes them one by one: its code fixes their number.
    dims = (1, "sequence") if image else TEXT
    spans = {"sequence": Span(offset=image[1] if image else 0, most=positions(text))}
    inputs = [InputSpec("input_ids", "int64", dims, text.vocab_size, spans, image)]
    if "attention_mask" in parameters:
        inputs.append(InputSpec("attention_mask", "int64", dims, 2, spans))
    types = getattr(config, "type_vocab_size", 0)
    if "token_type_ids" in parameters and types > 1:
        inputs.append(InputSpec("token_type_ids", "int64", dims, types, spans))
    if image or ("pixel_values" in parameters and "return_loss" in parameters):  # CLIP compares
        inputs.append(_image(config.vision_config, dims[0]))
    return tuple(inputs)


def _image_places(config: Any) -> tuple[int, int] | None:
    """(token, count): where a text says that an image stands, as Llava's does; else None.

    A token beyond the vocabulary can stand in no text.
    """
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    count = getattr(config, "image_seq_length", None)
    if not (isinstance(token, int) and isinstance(count, int)):
        return None
    return (token, count) if token < config.get_text_config().vocab_size else None


def positions(text: Any) -> int | None:
    """How long a text may be, for its table of positions; None where it has none.

    Some tables (RoBERTa's) begin behind the padding's number, and that is allowed for. A padding
    token beyond the table (of GPT-2, Phi-3) is none of these, and rotary models have no table.
    """
    told = getattr(text, "max_position_embeddings", None)
    if not isinstance(told, int):
        return None
    first = (getattr(text, "pad_token_id", None) or 0) + 1
    is_rotary = getattr(text, "rope_parameters", None) is not None
    return told if is_rotary or first >= told else told - first
