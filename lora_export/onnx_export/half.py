"""A source of models in float16: what it loads is rounded once, from float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError
from lora_export.onnx_export.bindings import as_array
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Checkpoint, InputSpec, MergePlan, ModelFacts, TensorRef

KEPT = ("inv_freq", "original_inv_freq")
"""Frequencies of rotary embeddings: transformers holds them in float32 whatever the model's dtype,
as places far back in a long text would otherwise be taken for their neighbours."""


@dataclass(frozen=True, slots=True)
class HalfSource:
    """The models of `full`, in float16, with float16 for every float32 input."""

    full: ModelSource

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """See source.ModelSource.inputs."""
        return tuple(
            replace(spec, dtype="float16") if spec.dtype == "float32" else spec
            for spec in self.full.inputs
        )

    def facts(self) -> ModelFacts:
        """See source.ModelSource.facts."""
        return self.full.facts()

    def load(
        self, checkpoint: Checkpoint, *, full: Mapping[str, TensorRef], untied: Sequence[str]
    ) -> nn.Module:
        """See source.ModelSource.load; the model is in float16.

        Raises:
            FitError: also where a finite weight is no float16; all such weights are named.
        """
        model = self.full.load(checkpoint, full=full, untied=untied)
        _refuse_too_large(model)
        return halve(model)

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """See source.ModelSource.load_live: of the float32 models."""
        return self.full.load_live(plan)

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """See source.ModelSource.module."""
        return self.full.module(model, name)


def halve(model: nn.Module) -> nn.Module:
    """The same model in float16, but for the frequencies of rotary embeddings."""
    kept = {
        (module, name): buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in KEPT
    }
    model.half()
    for (module, name), buffer in kept.items():
        setattr(module, name, buffer)
    return model


def _refuse_too_large(model: nn.Module) -> None:
    problems = [
        Problem(
            f"holds {_largest(value):.4g}, and the largest float16 is 65504",
            name,
            "--precision fp32, int8 or int8-weights; or leave it out of the adapter",
        )
        for name, value in model.state_dict().items()
        if value.is_floating_point() and _overflows(value)
    ]
    if problems:
        raise FitError.of(problems)


def _overflows(value: Tensor) -> bool:
    """Whether a finite element becomes infinite."""
    return bool((value.half().isinf() & value.isfinite()).any())


def _largest(value: Tensor) -> float:
    return float(value[value.isfinite()].abs().max())


def rounded_once(weights: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """What a float16 file must hold for these float32 weights; numpy rounds them, not torch."""
    import numpy as np

    arrays = {name: as_array(value) for name, value in weights.items()}
    return {
        name: array.astype(np.float16)
        if array.dtype == np.float32 and name.rpartition(".")[2] not in KEPT
        else array
        for name, array in arrays.items()
    }
