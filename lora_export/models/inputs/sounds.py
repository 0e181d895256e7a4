"""The sounds that a model takes: waves and spectrograms, with masks where there are any."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.records import InputSpec, Span

if TYPE_CHECKING:
    from collections.abc import Container

SOUND = ("batch", "samples")
FRAMES = ("batch", "frames")


def features(config: Any, parameters: Container[str]) -> tuple[InputSpec, ...]:
    """List the inputs of a model that takes `input_features`; nothing for an unknown form.

    Whisper takes (batch, bands, frames), padded to all frames. Speech2Text and Wav2Vec2-BERT take
    (batch, frames, bands) with a mask.
    """
    if _has(config, "num_mel_bins", "max_source_positions"):
        frames = 2 * config.max_source_positions
        return (InputSpec("input_features", "float32", ("batch", config.num_mel_bins, frames)),)
    if _has(config, "input_feat_per_channel", "input_channels"):
        bands = config.input_feat_per_channel * config.input_channels
    elif _has(config, "feature_projection_input_dim"):
        bands = config.feature_projection_input_dim
    else:
        return ()
    mask = (InputSpec("attention_mask", "int64", FRAMES, 2),)
    return (
        InputSpec("input_features", "float32", (*FRAMES, bands)),
        *(mask if "attention_mask" in parameters else ()),
    )


def waves(config: Any, parameters: Container[str]) -> tuple[InputSpec, ...]:
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


def _has(config: object, *names: str) -> bool:
    return all(hasattr(config, name) for name in names)
