"""The inputs of a model of transformers that --input does not describe: from forward and config."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.inputs.images import image_input
from lora_export.models.inputs.series import series
from lora_export.models.inputs.sounds import features, waves
from lora_export.records import InputSpec, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    #: Returns how many tokens a text model of a configuration takes; None for any number.
    Longest = Callable[[Any], int | None]

TEXT = ("batch", "sequence")
ANSWER = ("batch", "answer")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model beside its configuration."""

    longest: Longest
    """Returns how many tokens fit into the table of positions; see positions.positions."""
    processor: Callable[[], Mapping[str, object]]
    """Reads the image processor's configuration, preprocessor_config.json; it may be empty."""


def usual_inputs(model_class: Any, config: Any, label: str, known: Known) -> tuple[InputSpec, ...]:
    """List the inputs under the names of transformers' forward, batch and length dynamic.

    Known are token ids and masks, images, sounds, time series, a text about images, and the tokens
    of a decoder beside an encoder. Lengths end where the model's table of positions ends.

    Args:
        model_class: a class of transformers; its forward is read.
        config: the model's transformers configuration.
        label: the folder, for the message.
        known: what the configuration does not say.

    Raises:
        UsageError: the model takes something else.
    """
    parameters = inspect.signature(model_class.forward).parameters
    inputs = _first_inputs(parameters, config, known)
    if not inputs:
        raise UsageError(
            f"the inputs of {model_class.__name__} are not known",
            where=label,
            hint="--input 'name=dtype[dim,dim]<high' for each of them",
            cause="usage/model-inputs",
        )
    if "decoder_input_ids" in parameters and getattr(config, "is_encoder_decoder", False):
        return (*inputs, _decoder_ids(config, known.longest))
    return inputs


def _first_inputs(
    parameters: Mapping[str, inspect.Parameter], config: Any, known: Known
) -> tuple[InputSpec, ...]:
    if "input_ids" in parameters:
        return _text_inputs(config, parameters, known)
    if "input_features" in parameters:
        return features(config, parameters)
    if "input_values" in parameters:
        return waves(config, parameters)
    if "past_values" in parameters:
        return series(config, parameters)
    if "pixel_values" not in parameters:
        return ()
    return (image_input(config, known.processor), *_points(parameters))


def _points(parameters: Container[str]) -> tuple[InputSpec, ...]:
    """List the points of an image by which a model is asked for a part of it, as SAM is."""
    if "input_points" not in parameters or "input_labels" not in parameters:
        return ()
    dims = ("batch", 1, "points")
    return (
        InputSpec("input_points", "float32", (*dims, 2)),
        InputSpec("input_labels", "int64", dims, 2),
    )


def _decoder_ids(config: Any, longest: Longest) -> InputSpec:
    """Return the input of the tokens that a decoder beside an encoder has generated so far."""
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_target_positions", None) or longest(text)
    spans = {"answer": Span(most=most)}
    return InputSpec("decoder_input_ids", "int64", ANSWER, text.vocab_size, spans)


def _text_inputs(
    config: Any, parameters: Mapping[str, inspect.Parameter], known: Known
) -> tuple[InputSpec, ...]:
    text = config.get_text_config()
    image = _image_places(config) if "pixel_values" in parameters else None
    # A model that puts images into the text takes one text at a time: its code fixes their number.
    dims = (1, "sequence") if image else TEXT
    spans = {"sequence": Span(offset=image[1] if image else 0, most=known.longest(text))}
    inputs = [InputSpec("input_ids", "int64", dims, text.vocab_size, spans, image)]
    if "attention_mask" in parameters:
        inputs.append(InputSpec("attention_mask", "int64", dims, 2, spans))
    types = getattr(config, "type_vocab_size", 0)
    if "token_type_ids" in parameters and types > 1:  # a table of one row leaves no choice
        inputs.append(InputSpec("token_type_ids", "int64", dims, types, spans))
    if image or _needs_images(parameters):
        inputs.append(image_input(config, known.processor, dims[0]))
    return tuple(inputs)


def _needs_images(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether each text stands beside an image: CLIP compares both, BLIP needs both."""
    images = parameters.get("pixel_values")
    return images is not None and (images.default is images.empty or "return_loss" in parameters)


def _image_places(config: Any) -> tuple[int, int] | None:
    """Return (token, count) of the places of an image in a text, as of Llava; else None.

    None also where the token is beyond the vocabulary: no text holds it then.
    """
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    count = getattr(config, "image_seq_length", None)
    if not (isinstance(token, int) and isinstance(count, int)):
        return None
    return (token, count) if token < config.get_text_config().vocab_size else None
