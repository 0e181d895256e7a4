"""Write what a plan says into a staging path: shards, index, side files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor, tensor_bytes, torch_dtype
from lora_export.checkpoint.writer import ShardWriter, copy_file, write_bytes
from lora_export.errors import StorageError
from lora_export.execution.arithmetic import merged_weight

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.records import MergePlan, ShardPlan, Step, WrittenFile


def write_plan(plan: MergePlan, root: Path, *, allow_noop: bool) -> tuple[WrittenFile, ...]:
    """Carry `plan` out at `root`: a new file for a base that is one file, else a new folder.

    Returns:
        every file written, with its path relative to the folder (the name of a single file).

    Raises:
        InputError, FitError: see arithmetic.merged_weight.
        StorageError: the system refuses a write.
    """
    if plan.base.layout == "file":
        return (_write_shard(plan, plan.shards[0], root, allow_noop=allow_noop),)
    root.mkdir(exist_ok=True)
    written = [
        _write_shard(plan, shard, root / shard.file, allow_noop=allow_noop) for shard in plan.shards
    ]
    if plan.index_name:
        written.append(write_bytes(root / plan.index_name, _index(plan)))
    for file in plan.side_files:
        target = root / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.source is None:
            written.append(write_bytes(target, file.content or b"", name=file.name))
        else:
            written.append(copy_file(file.source, target, name=file.name))
    return tuple(written)


def _write_shard(plan: MergePlan, shard: ShardPlan, path: Path, *, allow_noop: bool) -> WrittenFile:
    specs = [step.out for step in shard.steps]
    with ShardWriter(path, specs, shard.metadata) as writer:
        for step in shard.steps:
            if step.deltas:
                weight = merged_weight(step, recipe=plan.recipe, allow_noop=allow_noop)
                writer.write(step.out.name, tensor_bytes(weight))
            elif step.source.spec.dtype == step.out.dtype:
                writer.copy(step.source, step.out.name)
            else:
                writer.write(step.out.name, _converted(step))
    if writer.written is None:
        raise StorageError("was not written whole", where=str(path))
    return writer.written


def _converted(step: Step) -> memoryview:
    """A full tensor of the adapter in the base's dtype, as load_state_dict would copy it."""
    return tensor_bytes(read_tensor(step.source).to(torch_dtype(step.out.dtype)))


def _index(plan: MergePlan) -> bytes:
    weight_map = {step.out.name: shard.file for shard in plan.shards for step in shard.steps}
    total = sum(step.out.nbytes for step in plan.steps())
    index = {"metadata": {**plan.index_metadata, "total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode() + b"\n"
