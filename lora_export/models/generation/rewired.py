"""Sources of models that are those of another source, but for their forward.

A graph of a generating model takes and gives its cache as plain tensors, which no forward of
transformers does. Here the forward is exchanged; all else stays with the plain source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from typing_extensions import Unpack

    from lora_export.models.hf.huggingface import HuggingFaceModel
    from lora_export.models.source import Loading
    from lora_export.records import Checkpoint, InputSpec, MergePlan, ModelFacts


class Wrapper:
    """A model source that passes every call on to another one; see source.ModelSource."""

    #: See source.ModelSource.
    prefers_streaming = True

    def __init__(self, plain: HuggingFaceModel, inputs: tuple[InputSpec, ...]) -> None:
        #: The source of the models as transformers builds them.
        self.plain = plain
        #: The declared inputs of the models of this source.
        self.inputs = inputs

    def facts(self) -> ModelFacts:
        """See source.ModelSource.facts."""
        return self.plain.facts()

    def load(self, checkpoint: Checkpoint, **settings: Unpack[Loading]) -> nn.Module:
        """See source.ModelSource.load."""
        return self.plain.load(checkpoint, **settings)

    def stream(self, checkpoint: Checkpoint, **settings: Unpack[Loading]) -> nn.Module:
        """See source.ModelSource.stream."""
        return self.plain.stream(checkpoint, **settings)

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


class Rewired(Wrapper):
    """A source of the models of `plain`, each with another forward; see source.ModelSource."""

    def __init__(
        self,
        plain: HuggingFaceModel,
        inputs: tuple[InputSpec, ...],
        mark: str,
        forward: Callable[[nn.Module], Callable[..., object]],
    ) -> None:
        """Take the models of `plain`.

        inputs: those of the new forward. mark: names the forward in `identity`. forward: makes the
        new forward of a model.
        """
        super().__init__(plain, inputs)
        self._mark = mark
        self._forward = forward

    def load(self, checkpoint: Checkpoint, **settings: Unpack[Loading]) -> nn.Module:
        """See source.ModelSource.load."""
        return self._rewired(super().load(checkpoint, **settings))

    def stream(self, checkpoint: Checkpoint, **settings: Unpack[Loading]) -> nn.Module:
        """See source.ModelSource.stream."""
        return self._rewired(super().stream(checkpoint, **settings))

    def blank(
        self, checkpoint: Checkpoint, *, untied: Sequence[str], dtype: str = "float32"
    ) -> nn.Module:
        """See source.ModelSource.blank."""
        return self._rewired(super().blank(checkpoint, untied=untied, dtype=dtype))

    def identity(self, checkpoint: Checkpoint) -> dict[str, object]:
        """See source.ModelSource.identity."""
        return {**super().identity(checkpoint), "forward": self._mark}

    def _rewired(self, model: nn.Module) -> nn.Module:
        model.forward = self._forward(model)
        return model
