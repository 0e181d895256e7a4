"""Writes a plan into a staging path: shards in threads, then index and side files."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import is_zero
from lora_export.checkpoint.output.writer import copy_file, write_bytes
from lora_export.errors import FitError
from lora_export.execution.digests import (
    add_base_lanes,
    complete_digests,
    hash_files,
    own_sums_checked,
)
from lora_export.execution.full_tensors import refuse_unusable
from lora_export.execution.garbage import torch_at_hand
from lora_export.execution.head_start import HeadStart, keep_freed_memory
from lora_export.execution.layout import segments_of
from lora_export.execution.output_file import FileTask
from lora_export.execution.pipeline import Pipeline
from lora_export.layers import all_kinds
from lora_export.layers.threads import one_thread_each
from lora_export.records import Problem
from lora_export.report.stopwatch import Stopwatch, unseen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.execution.segments import Watcher
    from lora_export.records import MergePlan, ShardPlan, SideFile, Step, WrittenFile
    from lora_export.report.stopwatch import Advance


def write_plan(
    plan: MergePlan,
    root: Path,
    *,
    allow_noop: bool,
    jobs: int | None = None,
    watcher: Watcher | None = None,
    progress: Advance = unseen,
    clock: Stopwatch | None = None,
    digest_base: bool = False,
) -> tuple[tuple[WrittenFile, ...], dict[Path, str]]:
    """Write `plan` at `root`: a new file for a base that is one file, else a new folder.

    Args:
        plan: what to write.
        root: a path in a staging folder; it must not exist, or be an empty folder.
        allow_noop: accept updates that change nothing.
        jobs: threads; None takes one a processor.
        watcher: sees every piece as it was read back from the output.
        progress: called with the bytes done so far, and in all.
        clock: counts "import torch" and "hash", which are no part of the merge itself.
        digest_base: hash the base's files as well, which costs as much as the copying.

    Returns:
        every file written, with its path relative to the folder (or the name of a single file).
        Then the SHA-256 of input files by path; with `digest_base`, of all files of the base.

    Raises:
        InputError: an input is damaged: bytes differ from their checksum, or it holds NaN or
            infinity where it takes part in the merge.
        FitError: a merged weight overflows, or equals the base; a full tensor overflows.
        StorageError: the system refuses a write.
    """
    if plan.base.layout == "folder":
        root.mkdir(exist_ok=True)
    jobs, clock = jobs or os.cpu_count() or 1, clock or Stopwatch()
    base = [shard.file for shard in plan.base.shards] if digest_base else []
    adapters = [path for adapter in plan.adapters for path in adapter.files()]
    tasks = [_task(plan, shard, root) for shard in plan.shards]
    keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(own_sums_checked(plan, jobs))
        # The head start ends with the import of torch, before any thread of the pipeline starts.
        with HeadStart(tasks, [*adapters, *base], jobs) as start:
            with clock("import torch") if "torch" not in sys.modules else nullcontext():
                stack.enter_context(torch_at_hand())
            refuse_unusable(plan)
        digests = complete_digests(start.hashed)
        # Only a watched merge reads the bytes of the base that it copies; the kernel does not.
        left = [file for file in base if file not in digests] if watcher else []
        followed = add_base_lanes(plan, tasks, left, start.hashed)
        stack.enter_context(one_thread_each())  # of BLAS: our own threads merge the blocks
        Pipeline(tasks, jobs, watcher, progress).run()
    if not allow_noop:
        _refuse_unchanged(plan, tasks)
    digests.update({file: lane.sha.hexdigest() for file, lane in followed.items()})
    if left := [file for file in base if file not in digests]:
        with clock("hash", "bytes") as seen:
            digests.update(hash_files(left, jobs, seen))
    written = [task.result() for task in tasks]
    if plan.base.layout == "folder":
        written += _write_around(plan, root)
    return tuple(written), digests


def _task(plan: MergePlan, shard: ShardPlan, root: Path) -> FileTask:
    path = root / shard.file if plan.base.layout == "folder" else root
    size = sum(step.out.nbytes for step in shard.steps)
    return FileTask(path, path.name, lambda: segments_of(plan, shard), size)


def _refuse_unchanged(plan: MergePlan, tasks: Sequence[FileTask]) -> None:
    """Refuse merged weights that equal the base, unless their factors are zeros."""
    hint = "merge into a base of higher precision, or with --dtype float32; --allow-noop accepts it"
    message = "the merged weight equals the base: the update is below its precision"
    unchanged = {name for task in tasks for name in task.unchanged}
    steps = [step for step in plan.steps() if step.out.name in unchanged]
    same = [
        Problem(message, step.out.name, hint, cause="fit/no-effect")
        for step in steps
        if not _is_idle(step)
    ]
    if same:
        raise FitError.of(same)


def _is_idle(step: Step) -> bool:
    """Return whether every update is a product with a factor of zeros, which planning accepted."""
    return all(
        all_kinds()[delta.kind].product is not None and any(map(is_zero, delta.factors.values()))
        for delta in step.deltas
    )


def _write_around(plan: MergePlan, root: Path) -> list[WrittenFile]:
    """Write the index and the side files."""
    written = []
    if plan.index_name:
        written.append(write_bytes(root / plan.index_name, index_bytes(plan)))
    return [*written, *write_side_files(plan.side_files, root)]


def write_side_files(files: Sequence[SideFile], root: Path) -> list[WrittenFile]:
    """Write side files into a new folder.

    Raises:
        InputError: a file became shorter while it was copied.
        StorageError: the system refuses a write.
    """
    written = []
    for file in files:
        target = root / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.source is None:
            written.append(write_bytes(target, file.content or b"", name=file.name))
        else:
            written.append(copy_file(file.source, target, name=file.name))
    return written


def index_bytes(plan: MergePlan) -> bytes:
    """Return the shard index of the plan's output, as transformers writes one (indented JSON)."""
    weight_map = {step.out.name: shard.file for shard in plan.shards for step in shard.steps}
    total = sum(step.out.nbytes for step in plan.steps())
    index = {"metadata": {**plan.index_metadata, "total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode() + b"\n"
