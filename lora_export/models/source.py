"""The form of a source of models: facts, and the model with a given checkpoint's weights.

Export and proof know this form only, and not where a model comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from typing_extensions import NotRequired

    from lora_export.records import Checkpoint, InputSpec, MergePlan, ModelFacts, TensorRef


class Loading(TypedDict):
    """The keywords of ModelSource.load and ModelSource.stream, to pass them on."""

    #: Tensors, by base name, that replace the checkpoint's.
    full: Mapping[str, TensorRef]
    #: Parameters, by base name, to separate from the tensor they share first.
    untied: Sequence[str]
    #: Of the floating weights, torch's name.
    dtype: NotRequired[str]


class ModelSource(Protocol):
    """A model that can be built as often as needed, each time with other weights."""

    #: Whether a large model is read while it runs although it would fit into memory. A user's
    #: network is not: its code may keep copies of weights.
    prefers_streaming: bool

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Return the model's declared inputs.

        Raises:
            UsageError: the inputs are not declared anywhere.
        """

    def facts(self) -> ModelFacts:
        """Read the facts of the model's modules that a checkpoint leaves out.

        Raises:
            InputError, UsageError: the model cannot be built.
        """

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """Build the model with the checkpoint's weights, in eval mode, without low-rank modules.

        Args:
            checkpoint: the base, or a merged one.
            full: tensors, by base name, that replace the checkpoint's.
            untied: parameters, by base name, to separate from the tensor they share first.
            dtype: of the floating weights, torch's name.

        Raises:
            FitError: checkpoint and model do not hold the same tensors, or `full` has no place.
            InputError: no model can be built of the checkpoint.
        """

    def stream(
        self,
        checkpoint: Checkpoint,
        *,
        full: Mapping[str, TensorRef],
        untied: Sequence[str],
        dtype: str = "float32",
    ) -> nn.Module:
        """Build the model that `load` builds, whose large weights are read while it runs.

        Raises:
            FitError, InputError: as `load` does.
            UsageError: this model's weights cannot be read that way.
        """

    def blank(
        self, checkpoint: Checkpoint, *, untied: Sequence[str], dtype: str = "float32"
    ) -> nn.Module:
        """Build the model that `load` builds, with any weights instead of the checkpoint's.

        It is for tracing. Buffers that follow from the configuration have their true values.

        Raises:
            InputError: no model can be built of the checkpoint.
        """

    def identity(self, checkpoint: Checkpoint) -> Mapping[str, object] | None:
        """Return, as JSON can hold it, what decides the graph of `blank` beside library versions.

        None where that cannot be known: a user's factory may read anything.
        """

    def load_live(self, plan: MergePlan) -> nn.Module | None:
        """Build the user's own low-rank modules, unmerged, with base and factors.

        None where the model has none, or where an update has no module of its own.
        """

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """Return the submodule that the base calls `name`.

        Raises:
            FitError, UsageError: the model has no such module.
        """
