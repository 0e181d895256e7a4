"""The cache of keys and values of a transformers model, as plain tensors that a graph can hold."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.models.network.calling import FAILURES
from lora_export.models.network.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from lora_export.models.hf.huggingface import HuggingFaceModel
    from lora_export.records import Checkpoint, InputSpec, MergePlan, ModelFacts, TensorRef

PAST = "past_key_values"
PRESENT = "present"
# Their keys and values are all that they keep. A window is in the mask, not only in the cache.
_PLAIN_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's keys (batch, heads, n, size) and values (batch, value_heads, n, value_size)."""

    heads: int
    size: int
    value_heads: int
    value_size: int

    def dims(self, length: int | str) -> dict[str, tuple[int | str, ...]]:
        """The dimensions of its keys and values, by the last part of their names."""
        return {
            "key": ("batch", self.heads, length, self.size),
            "value": ("batch", self.value_heads, length, self.value_size),
        }


class Rewired:
    """A source of the models of `plain`, whose forward is another one; see source.ModelSource."""

    def __init__(
        self,
        plain: HuggingFaceModel,
        inputs: tuple[InputSpec, ...],
        mark: str,
        forward: Callable[[nn.Module], Callable[..., object]],
    ) -> None:
        """inputs: of the new forward, which `forward` makes of a model. mark: its name."""
        self.plain = plain
        self.inputs = inputs
        self._mark = mark
        self._forward = forward

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
        """See source.ModelSource.load."""
        return self._rewired(self.plain.load(checkpoint, full=full, untied=untied, dtype=dtype))

    def blank(
        self, checkpoint: Checkpoint, *, untied: Sequence[str], dtype: str = "float32"
    ) -> nn.Module:
        """See source.ModelSource.blank."""
        return self._rewired(self.plain.blank(checkpoint, untied=untied, dtype=dtype))

    def identity(self, checkpoint: Checkpoint) -> dict[str, object]:
        """See source.ModelSource.identity."""
        return {**self.plain.identity(checkpoint), "forward": self._mark}

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """See source.ModelSource.load_live."""
        return self.plain.load_live(plan)

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """See source.ModelSource.module."""
        return self.plain.module(model, name)

    def _rewired(self, model: nn.Module) -> nn.Module:
        model.forward = self._forward(model)
        return model


def parameters_of(plain: HuggingFaceModel) -> Mapping[str, inspect.Parameter]:
    """The parameters of its forward."""
    return inspect.signature(plain.model_class.forward).parameters


def taking_cache(model: Any) -> Callable[[object], dict[str, Any]]:
    """The arguments with which its forward, as it is now, takes a cache and fills it further."""
    parameters = inspect.signature(model.forward).parameters
    asked = {"use_cache": True} if "use_cache" in parameters else {}
    name = str(cache_name(parameters))
    return lambda cache: {**asked, name: cache}


def cache_name(parameters: Mapping[str, object]) -> str | None:
    """What forward calls the cache: transformers 5.24 has another name than those before."""
    return next((name for name in ("cache", PAST) if name in parameters), None)


def ask_cache(plain: HuggingFaceModel, feed: Mapping[str, tuple[int, ...]]) -> tuple[Any, Any]:
    """(answer, cache) of the model itself, without weights, to inputs of these shapes.

    Raises:
        UsageError: it does not run so, and what it keeps is not known.
    """
    import torch

    name = plain.model_class.__name__
    model: Any = plain.skeleton().eval()
    with quiet(), suppress(AttributeError, ValueError):  # the usual ways look at values
        model.set_attn_implementation("eager")
        model.set_experts_implementation("batched_mm")
    try:
        with quiet(), torch.device("meta"), torch.no_grad():
            inputs = {
                key: torch.ones(shape, dtype=torch.long if key.endswith("ids") else torch.float)
                for key, shape in feed.items()
            }
            answer = model(**inputs, use_cache=True)
            found = answer.get("cache", None)
            return answer, answer[PAST] if found is None else found
    except FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        message = f"what {name} keeps in its cache cannot be told: {reason}"
        raise UsageError(message, where="--kv-cache", hint="leave --kv-cache out") from error


def layers_of(name: str, cache: Any) -> list[Layer]:
    """The layers of a cache of the class `name`.

    Raises:
        UsageError: one keeps something else than keys and values.
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
    """Refuse a cache that is more than keys and values, by the names of its layers."""
    kinds = {type(layer).__name__ for layer in cache.layers}
    other = sorted(kinds.difference(_PLAIN_LAYERS))
    if other:
        raise UsageError(
            f"{name} keeps {' and '.join(other)} in its cache, which keys and values cannot hold",
            where="--kv-cache",
            hint="leave --kv-cache out",
        )


def filled(past: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """A cache that grows, and holds this past; a window is left to the mask, which has it too."""
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
    """Take the keys and values of `count` layers out of inputs by name, as the tracer names them.

    side: "decoder" or "encoder", where the model has a past of each.
    """
    parts = f"{side}_" if side else ""
    return [
        (
            given.pop(f"{PAST}_{number}_{parts}key"),
            given.pop(f"{PAST}_{number}_{parts}value"),
        )
        for number in range(count)
    ]


def traced_names(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs by the names that parameters of a function can have: without dots."""
    return {name.replace(".", "_"): tensor for name, tensor in given.items()}


def present(cache: Any, side: str = "") -> dict[str, Tensor]:
    """What a cache holds, by the names of the graph's outputs."""
    parts = f"{side}." if side else ""
    return {
        f"{PRESENT}.{number}.{parts}{part}": tensor
        for number, layer in enumerate(cache.layers)
        for part, tensor in (("key", layer.keys), ("value", layer.values))
    }
