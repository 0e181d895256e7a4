"""The cache of keys and values of a transformers model, as plain tensors that a graph can hold."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.network.calling import FAILURES
from lora_export.models.network.quiet import quiet
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lora_export.models.hf.huggingface import HuggingFaceModel

PAST = "past_key_values"
"""What the graph's inputs of keys and values begin with, as Optimum names them."""
PRESENT = "present"
"""What the graph's outputs of keys and values begin with."""

_WHOLE = ("ids", "mask")
"""The ends of the names of inputs that hold whole numbers."""

# These layers of a cache keep nothing but keys and values. A sliding window is in the mask too.
_PLAIN_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")


@dataclass(frozen=True, slots=True)
class Layer:
    """The sizes of a layer's keys (batch, heads, n, size) and values."""

    heads: int
    """Heads of the keys."""
    size: int
    """Numbers in a key."""
    value_heads: int
    """Heads of the values."""
    value_size: int
    """Numbers in a value."""

    def dims(self, length: int | str) -> dict[str, tuple[int | str, ...]]:
        """Return the dimensions of keys and values, by the last part of their names."""
        return {
            "key": ("batch", self.heads, length, self.size),
            "value": ("batch", self.value_heads, length, self.value_size),
        }


def parameters_of(plain: HuggingFaceModel) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the forward of transformers' class, by name."""
    return inspect.signature(plain.model_class.forward).parameters


def cache_arguments(model: Any) -> Callable[[object], dict[str, Any]]:
    """Return a function from a cache to the keyword arguments by which forward takes it.

    The model's present forward is read. With these arguments forward also fills the cache further.
    """
    parameters = inspect.signature(model.forward).parameters
    asked = {"use_cache": True} if "use_cache" in parameters else {}
    name = str(cache_name(parameters))
    return lambda cache: {**asked, name: cache}


def cache_name(parameters: Mapping[str, object]) -> str | None:
    """Return the parameter of forward that takes the cache; None where there is none.

    transformers 5.24 calls it `cache`, earlier versions `past_key_values`.
    """
    return next((name for name in ("cache", PAST) if name in parameters), None)


def probe_cache(plain: HuggingFaceModel, feed: Mapping[str, tuple[int, ...]]) -> tuple[Any, Any]:
    """Run the model without weights, on inputs of these shapes; return (its output, its cache).

    Raises:
        UsageError: the model cannot be run without weights.
    """
    import torch

    name = plain.model_class.__name__
    model: Any = plain.skeleton().eval()
    # On the meta device tensors have no values, and the default implementations read values.
    with quiet(), suppress(AttributeError, ValueError):
        model.set_attn_implementation("eager")
        model.set_experts_implementation("batched_mm")
    try:
        with quiet(), torch.device("meta"), torch.no_grad():
            inputs = {
                key: torch.ones(shape, dtype=torch.long if key.endswith(_WHOLE) else torch.float)
                for key, shape in feed.items()
            }
            output = model(**inputs, use_cache=True)
            found = output.get("cache", None)
            return output, output[PAST] if found is None else found
    except FAILURES as error:
        reason = reason_of(error)
        message = f"the contents of the cache of {name} are not known: {reason}"
        raise UsageError(
            message, where="--kv-cache", hint="leave --kv-cache out", cause="usage/kv-cache"
        ) from error


def layers_of(name: str, cache: Any) -> list[Layer]:
    """List the sizes of the layers of a cache, which belongs to a model of the class `name`.

    Raises:
        UsageError: a layer keeps something else than keys and values.
    """
    refuse_other_layers(name, cache)
    return [
        Layer(
            layer.keys.shape[1],
            layer.keys.shape[3],
            layer.values.shape[1],
            layer.values.shape[3],
        )
        for layer in cache.layers
    ]


def refuse_other_layers(name: str, cache: Any) -> None:
    """Refuse a cache that holds more than keys and values, by the classes of its layers.

    Raises:
        UsageError: a layer is of another class; `name` is the model's class, for the message.
    """
    kinds = {type(layer).__name__ for layer in cache.layers}
    other = sorted(kinds.difference(_PLAIN_LAYERS))
    if other:
        raise UsageError(
            f"{name} keeps {' and '.join(other)} in its cache, which keys and values cannot hold",
            where="--kv-cache",
            hint="leave --kv-cache out",
            cause="usage/kv-cache",
        )


def cache_of(past: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """Make a growing cache that holds these keys and values, one pair a layer.

    A sliding window is not cut off: the mask has it too.
    """
    from transformers import cache_utils

    cache: Any = cache_utils.DynamicCache()
    grows: Any = cache_utils.DynamicLayer
    for keys, values in past:
        layer = grows()
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def take_past(given: dict[str, Tensor], count: int, side: str = "") -> list[tuple[Tensor, Tensor]]:
    """Remove the keys and values of `count` layers from `given`; return them, one pair a layer.

    given: inputs by the names of the tracer, without dots. side: "decoder" or "encoder", where the
    model has a past of each.
    """
    parts = f"{side}_" if side else ""
    return [
        (
            given.pop(f"{PAST}_{number}_{parts}key"),
            given.pop(f"{PAST}_{number}_{parts}value"),
        )
        for number in range(count)
    ]


def without_dots(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename inputs to what parameters of a function can be called: without dots."""
    return {name.replace(".", "_"): tensor for name, tensor in given.items()}


def present_outputs(cache: Any, side: str = "") -> dict[str, Tensor]:
    """Return the keys and values of a cache by the names of the graph's outputs.

    side: as for `take_past`.
    """
    parts = f"{side}." if side else ""
    return {
        f"{PRESENT}.{number}.{parts}{part}": tensor
        for number, layer in enumerate(cache.layers)
        for part, tensor in (("key", layer.keys), ("value", layer.values))
    }
