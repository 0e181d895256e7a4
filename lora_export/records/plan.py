"""The plan of a merge: how every output tensor is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records.adapters import Adapter
    from lora_export.records.card import Card
    from lora_export.records.delta import Delta
    from lora_export.records.files import Checkpoint, SideFile, TensorRef, TensorSpec


StepAction = Literal[
    "copy",  # the base's bytes
    "cast",  # the base's values, rounded to another dtype
    "merge",  # the base's tensor with deltas
    "replace",  # an adapter's tensor, or another layer's, in place of the base's
    "add",  # a tensor that the base lacks: an adapter's, an untied head, a repeated layer
]
"""How an output tensor is made from `Step.source`."""


@dataclass(frozen=True, slots=True)
class Step:
    """How one output tensor is made."""

    out: TensorSpec
    """Name, dtype and shape of the output tensor."""
    action: StepAction
    """What is done to `source`: "copy", "cast", "merge", "replace" or "add"."""
    source: TensorRef
    """The stored tensor that it is made from."""
    deltas: tuple[Delta, ...] = ()
    """Updates of `source`, whatever the action."""
    reason: str = ""
    """Why the tensor is replaced or added, for the user."""
    in_turn: bool = False
    """Whether the deltas are added one after the other, each sum rounded to the dtype.

    A library does so that merges several modules of one adapter into one parameter.
    """
    is_widened: bool = False
    """Whether the tensor is merged in a wider dtype, and then rounded once to that of `out`."""

    @property
    def merge_dtype(self) -> str:
        """Return the dtype of the matrix to which the updates are added.

        It is float32 for a step that is widened, and float64 where the source is float64.
        """
        if not self.is_widened:
            return self.out.dtype
        return "F64" if self.source.spec.dtype == "F64" else "F32"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One output file."""

    file: str
    """The name relative to the output folder."""
    steps: tuple[Step, ...]
    """In the order in which the tensors are stored."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The `__metadata__` of its header."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything that will be written, decided before the first byte is written."""

    base: Checkpoint
    """Its tensors, by name, and where they are stored."""
    adapters: tuple[Adapter, ...]
    """In the order in which they were named."""
    recipe: str
    """Whose arithmetic is reproduced: "auto", "peft", "peft-safe" or "exact"."""
    shards: tuple[ShardPlan, ...]
    """The weight files that are written, each with its tensors."""
    side_files: tuple[SideFile, ...] = ()
    """The other files of a folder, each a copy or an edit."""
    index_name: str | None = None
    """The file that names the shard of every tensor; None for weights in one file."""
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    """Its `metadata`."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Base tensors that are not written, each with the reason.

    They are factors inside the base, or belong to layers that layer_replication leaves out.
    """
    unmatched: tuple[str, ...] = ()
    """Adapter keys that --allow-unmatched left out."""
    coupled: tuple[str, ...] = ()
    """Tied tensors that change together (--tied eval); the result then differs from the model."""
    separated: tuple[str, ...] = ()
    """Names that are tied to another one in the base's model and no longer in the result."""
    reshaped: tuple[str, ...] = ()
    """How the model's config changes its shape, for the user.

    Only the result's own config then builds the model.
    """
    twins: tuple[Delta, ...] = ()
    """Updates that the unmerged model applies under a further name of a tensor that stays tied."""
    choices: tuple[str, ...] = ()
    """Every naming rule and fact that was used, for the user."""
    warnings: tuple[str, ...] = ()
    """What in the inputs needs the user's attention."""
    card: Card | None = None
    """The content of a folder's README.md that comes from neither the plan nor the proof."""

    def steps(self) -> tuple[Step, ...]:
        """Return all steps of all shards, in storage order."""
        return tuple(step for shard in self.shards for step in shard.steps)

    def new_tensors(self) -> dict[str, TensorRef]:
        """Return the tensors that the base lacks and a model needs, by name.

        A name that is tied in the base's own model is not among them.
        """
        steps = (step for step in self.steps() if step.action == "add")
        return {s.out.name: s.source for s in steps if s.out.name not in self.separated}

    def full_tensors(self) -> dict[str, TensorRef]:
        """Return the tensors that the unmerged model holds beside or instead of the base's.

        An adapted tensor is returned with the value before its update.
        """
        steps = (step for step in self.changed() if step.action != "merge")
        return {step.out.name: step.source for step in steps}

    def sources(self) -> dict[str, TensorRef]:
        """Return what every tensor is made from that is no copy of the base's bytes, by name."""
        return {step.out.name: step.source for step in self.steps() if step.action != "copy"}

    def changed(self) -> tuple[Step, ...]:
        """Return the steps whose output has neither the base's bytes nor its values, rounded."""
        return tuple(step for step in self.steps() if step.action not in ("copy", "cast"))

    def edits(self) -> dict[str, tuple[str, ...]]:
        """Return what differs from the base in each file around the weights, by name."""
        edited = {file.name: file.edits for file in self.side_files if file.edits}
        return {**edited, **({"README.md": self.card.edits} if self.card else {})}
