"""From the changes to the steps: one for every tensor of the result, in its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.planning.full_tensors.heads import head_dtype
from lora_export.records import ShardPlan, Step, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import Shard, StepAction, TensorRef


def plan_shards(
    given: Given,
    changes: TensorChanges,
    layers: Mapping[str, tuple[str, ...]],
    in_turn: Collection[str],
) -> tuple[ShardPlan, ...]:
    """Plan the output files: a step for each of the base's tensors, then the added tensors.

    Args:
        given: the inputs of the plan.
        changes: the changes of tensors, which are complete.
        layers: the names under which a tensor of a repeated layer is written.
        in_turn: names whose updates are added one after the other, each sum rounded.
    """
    own = {ref.spec.name for shard in given.base.shards for ref in shard.tensors}
    plans = []
    for shard in given.base.shards:
        steps = [
            _step(changes, name, ref, is_new=name not in own, in_turn=name in in_turn)
            for ref in shard.tensors
            for name in layers.get(ref.spec.name, (ref.spec.name,))
        ]
        plans.append(_shard(shard, steps))
    last = plans[-1]
    steps = [*last.steps, *_added(given, changes)]
    return (*plans[:-1], ShardPlan(last.file, tuple(steps), last.metadata))


def _shard(shard: Shard, steps: list[Step]) -> ShardPlan:
    converted = shard.container == "torch"
    metadata = {"format": "pt"} if converted else shard.metadata
    return ShardPlan(safetensors_name(shard.file.name), tuple(steps), metadata)


def _step(
    changes: TensorChanges, name: str, ref: TensorRef, *, is_new: bool, in_turn: bool
) -> Step:
    """Return the step of a tensor of the base that is called `name` in the result.

    is_new: the base has no tensor of this name.
    """
    source = changes.replaced.get(name) or changes.copies.get(name) or ref
    deltas = tuple(changes.merged.get(name, ()))
    spec = TensorSpec(name, ref.spec.dtype, source.spec.shape)
    action: StepAction = "merge" if deltas else "copy"
    reason = ""
    if is_new or source is not ref or name != ref.spec.name:
        action = "add" if is_new else "replace"
        reason = "" if source is not ref else f"the base's {ref.spec.name}"
    return Step(spec, action, source, deltas, reason, in_turn)


def _added(given: Given, changes: TensorChanges) -> list[Step]:
    steps = []
    for name, ref in changes.added.items():
        spec = TensorSpec(name, head_dtype(given, changes, name, ref), ref.spec.shape)
        deltas = tuple(changes.merged.get(name, ()))
        is_new = name in changes.heads or name in changes.own or ref.spec.name == name
        reason = "a new tensor" if is_new else f"untied from {ref.spec.name}"
        steps.append(Step(spec, "add", ref, deltas, reason))
    return steps


def safetensors_name(name: str) -> str:
    """Return the name of a weight file or index after conversion to safetensors."""
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return name
    name = name.replace("pytorch_model", "model", 1)
    index = name.endswith(".index.json")
    stem = name.removesuffix(".index.json").rpartition(".")[0]
    return f"{stem}.safetensors{'.index.json' if index else ''}"
