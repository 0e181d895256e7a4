"""What a source of models must offer: facts, and the model with a given checkpoint's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_export.records import Checkpoint, InputSpec, MergePlan, ModelFacts, TensorRef


class ModelSource(Protocol):
    """A model that can be built as often as needed, each time with other weights."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The model's declared inputs.

        Raises:
            UsageError: the inputs are not declared anywhere.
        """

    def facts(self) -> ModelFacts:
        """What the model tells about a loralib checkpoint."""

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """A model in eval mode, without low-rank modules, with the checkpoint's weights in `dtype`.

        full: tensors (by base name) that go over the checkpoint's. untied: parameters to separate
        from the tensor they share first.

        Raises:
            FitError: checkpoint and model do not hold the same tensors, or `full` has no place.
            InputError: no model can be built of the checkpoint.
        """

    def blank(
        self, checkpoint: Checkpoint, *, untied: Sequence[str], dtype: str = "float32"
    ) -> nn.Module:
        """The model that `load` gives, with any weights in place of the checkpoint's: to trace it.

        What is no weight (buffers that follow from the configuration) has its true values.

        Raises:
            InputError: no model can be built of the checkpoint.
        """

    def identity(self, checkpoint: Checkpoint) -> Mapping[str, object] | None:
        """All that decides the graph of `blank` beside library versions, as JSON can hold it.

        None where nobody can know.
        """

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """The user's own low-rank modules, unmerged, with base and factors; None without any."""

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """The submodule that the base calls `name`.

        Raises:
            FitError: the model has no such module.
        """
