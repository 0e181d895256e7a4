"""The time series that a model takes. Every length is one of its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.records import InputSpec

if TYPE_CHECKING:
    from collections.abc import Container


def series(config: Any, parameters: Container[str]) -> tuple[InputSpec, ...]:
    """List the inputs of a model of time series, as far as its forward takes them.

    PatchTST takes (batch, context, channels). TimeSeriesTransformer, Informer and Autoformer also
    take the values that the longest lag reaches back to, what is known of each time, of the series
    itself, and of the times to come.

    Returns:
        nothing where the configuration names no lengths.
    """
    context = getattr(config, "context_length", None)
    if not isinstance(context, int):
        return ()
    if channels := getattr(config, "num_input_channels", 0):
        return (InputSpec("past_values", "float32", ("batch", context, channels)),)
    if not hasattr(config, "lags_sequence"):
        return ()
    past, future = context + max(config.lags_sequence), config.prediction_length
    found = (*_known(config, past, future), *_of_the_series(config))
    return tuple(spec for spec in found if spec.name in parameters)


def _known(config: Any, past: int, future: int) -> tuple[InputSpec, ...]:
    """List what is known of each of the past and future times. Both are lengths."""
    width = (config.input_size,) if config.input_size > 1 else ()
    facts = config.num_time_features + config.num_dynamic_real_features
    return (
        InputSpec("past_values", "float32", ("batch", past, *width)),
        InputSpec("past_time_features", "float32", ("batch", past, facts)),
        InputSpec("past_observed_mask", "bool", ("batch", past, *width)),
        InputSpec("future_values", "float32", ("batch", future, *width)),
        InputSpec("future_time_features", "float32", ("batch", future, facts)),
    )


def _of_the_series(config: Any) -> tuple[InputSpec, ...]:
    found = []
    if count := config.num_static_categorical_features:
        high = min(config.cardinality)
        found.append(InputSpec("static_categorical_features", "int64", ("batch", count), high))
    if count := config.num_static_real_features:
        found.append(InputSpec("static_real_features", "float32", ("batch", count)))
    return tuple(found)
