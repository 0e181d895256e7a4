"""The inputs of a model of transformers that --input does not describe: from forward and config."""

from __future__ import annotations

import inspect
from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.records import InputSpec, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    #: Returns how many tokens a text model of a configuration takes; None for any number.
    Longest = Callable[[Any], int | None]

TEXT = ("batch", "sequence")
SOUND = ("batch", "samples")
ANSWER = ("batch", "answer")


def usual_inputs(
    model_class: Any, config: Any, label: str, longest: Longest
) -> tuple[InputSpec, ...]:
    """List the inputs under the names of transformers' forward, batch and length dynamic.

    Known are token ids and masks, images, sounds, a text about images, and the tokens of a decoder
    beside an encoder. Lengths end where the model's table of positions ends.

    Args:
        model_class: a class of transformers; its forward is read.
        config: the model's transformers configuration.
        label: the folder, for the message.
        longest: returns how many tokens fit into the table of positions of a text model, given its
            configuration; see positions.positions.

    Raises:
        UsageError: the model takes something else.
    """
    parameters = inspect.signature(model_class.forward).parameters
    inputs = _first_inputs(parameters, config, longest)
    if not inputs:
        raise UsageError(
            f"the inputs of {model_class.__name__} are not known",
            where=label,
            hint="--input 'name=dtype[dim,dim]<high' for each of them",
            cause="usage/model-inputs",
        )
    if "decoder_input_ids" in parameters and getattr(config, "is_encoder_decoder", False):
        return (*inputs, _decoder_ids(config, longest))
    return inputs


def _first_inputs(
    parameters: Container[str], config: Any, longest: Longest
) -> tuple[InputSpec, ...]:
    if "input_ids" in parameters:
        return _text_inputs(config, parameters, longest)
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
    """List the inputs of a sound: a spectrogram of one size, or a wave with its mask.

    A wave must be longer than the samples that one output of the convolutions depends on. Models
    without layer norm in them were trained without a mask (documentation of Wav2Vec2Model).
    """
    if _has(config, "num_mel_bins", "max_length"):
        return (
            InputSpec("input_values", "float32", ("batch", config.max_length, config.num_mel_bins)),
        )
    if not _has(config, "conv_kernel", "conv_stride"):
        return ()
    strides = [prod(config.conv_stride[:place]) for place in range(len(config.conv_stride))]
    steps = zip(config.conv_kernel, strides, strict=True)
    spans = {"samples": Span(unit=1 + sum((kernel - 1) * stride for kernel, stride in steps))}
    wave = InputSpec("input_values", "float32", SOUND, spans=spans)
    if "attention_mask" in parameters and getattr(config, "feat_extract_norm", "") == "layer":
        return (wave, InputSpec("attention_mask", "int64", SOUND, 2, spans=spans))
    return (wave,)


def _decoder_ids(config: Any, longest: Longest) -> InputSpec:
    """Return the input of the tokens that a decoder beside an encoder has generated so far."""
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_target_positions", None) or longest(text)
    spans = {"answer": Span(most=most)}
    return InputSpec("decoder_input_ids", "int64", ANSWER, text.vocab_size, spans)


def _text_inputs(
    config: Any, parameters: Container[str], longest: Longest
) -> tuple[InputSpec, ...]:
    text = config.get_text_config()
    image = _image_places(config) if "pixel_values" in parameters else None
    # A model that puts images into the text takes one text at a time: its code fixes their number.
    dims = (1, "sequence") if image else TEXT
    spans = {"sequence": Span(offset=image[1] if image else 0, most=longest(text))}
    inputs = [InputSpec("input_ids", "int64", dims, text.vocab_size, spans, image)]
    if "attention_mask" in parameters:
        inputs.append(InputSpec("attention_mask", "int64", dims, 2, spans))
    types = getattr(config, "type_vocab_size", 0)
    if "token_type_ids" in parameters and types > 1:  # a table of one row leaves no choice
        inputs.append(InputSpec("token_type_ids", "int64", dims, types, spans))
    if image or ("pixel_values" in parameters and "return_loss" in parameters):  # CLIP compares
        inputs.append(_image(config.vision_config, dims[0]))
    return tuple(inputs)


def _image_places(config: Any) -> tuple[int, int] | None:
    """Return (token, count) of the places of an image in a text, as of Llava; else None.

    None also where the token is beyond the vocabulary: no text holds it then.
    """
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    count = getattr(config, "image_seq_length", None)
    if not (isinstance(token, int) and isinstance(count, int)):
        return None
    return (token, count) if token < config.get_text_config().vocab_size else None
