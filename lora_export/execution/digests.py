"""Computes SHA-256 of the base's files for the manifest, if possible without an extra reading.

The head start hashes the first files. Others are hashed from the bytes that the merge reads. A file
that the merge does not read whole and in order is read again.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.reading import open_for_reading, pread_exact, system_errors
from lora_export.checkpoint.torch_save.torch_zip import check_sums
from lora_export.execution.output_file import Lane
from lora_export.report.stopwatch import Seen, unseen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from hashlib import _Hash as HASH
    from pathlib import Path

    from lora_export.execution.output_file import FileTask
    from lora_export.records import MergePlan, ShardPlan
    from lora_export.report.stopwatch import Advance


def complete_digests(hashed: Mapping[Path, tuple[HASH, int]]) -> dict[Path, str]:
    """Return the digests of the files that were hashed to their ends.

    hashed: digests so far, and of how many bytes, by file.
    """
    return {
        file: sha.hexdigest() for file, (sha, size) in hashed.items() if size == file.stat().st_size
    }


def add_base_lanes(
    plan: MergePlan,
    tasks: Sequence[FileTask],
    files: Sequence[Path],
    hashed: Mapping[Path, tuple[HASH, int]],
) -> dict[Path, Lane]:
    """Let the tasks hash those of the base's `files` that they read whole and in order.

    Each such task gets one more lane.

    Args:
        plan: what the tasks write.
        tasks: one for each of the plan's shards.
        files: files of the base that need a digest.
        hashed: digests of the starts of files, and of how many bytes, from the head start.

    Returns:
        the lane of each such file.

    Raises:
        InputError, StorageError: the header of a file cannot be read.
    """
    followed: dict[Path, Lane] = {}
    if len(plan.shards) != len(plan.base.shards):
        return followed
    for task, shard, source in zip(tasks, plan.shards, plan.base.shards, strict=True):
        if source.file in files and _is_read_whole(shard, source.file):
            lane = _carried_on(_header_of(shard, source.file), hashed.get(source.file))
            followed[source.file] = lane
            task.lanes.append(lane)
    return followed


def _carried_on(header: bytes, hashed: tuple[HASH, int] | None) -> Lane:
    """Return a lane that has hashed a file's header, or more if the head start came further."""
    if hashed is None or hashed[1] < len(header):
        return Lane(hashlib.sha256(header))
    sha, size = hashed
    return Lane(sha, skip=size - len(header))  # the merge passes these bytes of tensors again


def _is_read_whole(shard: ShardPlan, file: Path) -> bool:
    """Return whether writing the shard reads every byte of the base's `file`, in its order.

    A digest needs the bytes in order. A step that replaces a tensor does not read the base's, and a
    step that adds one reads another file.
    """
    at = -1
    for step in shard.steps:
        ref = step.source
        if step.action == "add":
            continue
        if step.action == "replace" or ref.file != file or ref.strides is not None:
            return False
        if at not in (-1, ref.offset):
            return False
        at = ref.offset + ref.length
    return at == file.stat().st_size


def _header_of(shard: ShardPlan, file: Path) -> bytes:
    """Read the bytes of a base's file before its first tensor."""
    first = min(s.source.offset for s in shard.steps if s.source.file == file)
    with open_for_reading(file) as descriptor, system_errors(file, "read"):
        return pread_exact(descriptor, first, 0)


def hash_files(files: Sequence[Path], jobs: int, progress: Advance = unseen) -> dict[Path, str]:
    """Return the SHA-256 of whole files, `jobs` at a time.

    progress: called with the bytes done so far, and in all.

    Raises:
        StorageError: a file cannot be read.
    """
    seen = Seen(progress, sum(file.stat().st_size for file in files if file.is_file()))
    with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
        hashed = pool.map(partial(file_sha256, seen=seen), files)
        return dict(zip(files, hashed, strict=True))


@contextmanager
def own_sums_checked(plan: MergePlan, jobs: int) -> Iterator[None]:
    """Check the inputs against the checksums that they carry, while the block runs.

    Only archives of torch.save carry any. Threads read them beside the merge, when the same bytes
    are in the system's cache anyway.

    Raises:
        InputError: bytes of an input have changed since they were written.
        StorageError: a file cannot be read.
    """
    files = [shard.file for shard in plan.base.shards if shard.container == "torch"]
    files += [path for adapter in plan.adapters for path in adapter.files()]
    with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
        checks = [pool.submit(check_sums, file) for file in files]
        yield
        for check in checks:
            check.result()
