"""What will be written: how every output tensor comes about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records.adapters import Adapter, Delta
    from lora_export.records.card import Card
    from lora_export.records.files import Checkpoint, SideFile, TensorRef, TensorSpec


StepAction = Literal["copy", "merge", "replace", "add"]


@dataclass(frozen=True, slots=True)
class Step:
    """How one output tensor comes about.

    action: copy the base's bytes, merge deltas into them, replace them by an adapter's tensor, or
    add a tensor that the base does not hold (an adapter's, or an untied head made from the base's
    embedding; then `source` is the embedding).
    """

    out: TensorSpec
    action: StepAction
    source: TensorRef
    deltas: tuple[Delta, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One output file: name relative to the output folder, its steps in storage order."""

    file: str
    steps: tuple[Step, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything that will be written, decided before the first byte is.

    dropped: base tensors that are not written and why (adapter tensors inside a training
    checkpoint). choices: every naming rule and fact used, in words. unmatched: adapter keys that
    --allow-unmatched let go. coupled: tied tensors that change together (--tied eval), so that the
    result cannot equal the unmerged model. separated: names that are tied to another one in the
    model and are no longer. card: what a folder's README.md says beside the plan and the proof.
    """

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    recipe: str
    shards: tuple[ShardPlan, ...]
    side_files: tuple[SideFile, ...] = ()
    index_name: str | None = None
    index_metadata: Mapping[str, object] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    coupled: tuple[str, ...] = ()
    separated: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    card: Card | None = None

    def steps(self) -> tuple[Step, ...]:
        """All steps of all shards, in storage order."""
        return tuple(step for shard in self.shards for step in shard.steps)

    def new_tensors(self) -> dict[str, TensorRef]:
        """The tensors the base lacks, without which no model can be built on it."""
        return {step.out.name: step.source for step in self.steps() if step.action == "add"}

    def full_tensors(self) -> dict[str, TensorRef]:
        """What the unmerged model holds beside or instead of the base's tensors, by their names.

        A tensor that is new and adapted counts with the value it has before its update.
        """
        steps = (step for step in self.changed() if not step.deltas or step.action == "add")
        return {step.out.name: step.source for step in steps}

    def changed(self) -> tuple[Step, ...]:
        """The steps whose output is not a copy of the base's bytes."""
        return tuple(step for step in self.steps() if step.action != "copy")

    def edits(self) -> dict[str, tuple[str, ...]]:
        """What is not the base's, byte for byte, of each file around the weights, in words."""
        edited = {file.name: file.edits for file in self.side_files if file.edits}
        return {**edited, **({"README.md": self.card.edits} if self.card else {})}
