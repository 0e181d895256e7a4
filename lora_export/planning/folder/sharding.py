"""New shards of at most a given size for a result (--max-shard-size)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.errors import UsageError
from lora_export.records import ShardPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Step

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Parse `5GB`, `500MB`, `2GiB` or a plain number of bytes, as huggingface_hub does.

    Raises:
        UsageError: the text is no such size, or it is zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", text.strip().upper())
    unit = _UNITS.get(found[2]) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if size <= 0:
        raise UsageError(
            f"{text!r} is no size",
            where="--max-shard-size",
            hint="e.g. 5GB or 500MB",
            cause="usage/option-value",
        )
    return size


def resharded(shards: Sequence[ShardPlan], limit: int) -> tuple[ShardPlan, ...]:
    """Return the same steps, in the same order, in files of at most `limit` bytes of tensors.

    A tensor that is larger has a file of its own. The files' names are those of transformers.
    """
    groups: list[list[Step]] = [[]]
    size = 0
    for step in (step for shard in shards for step in shard.steps):
        if groups[-1] and size + step.out.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(step)
        size += step.out.nbytes
    metadata = shards[0].metadata
    if len(groups) == 1:
        return (ShardPlan("model.safetensors", tuple(groups[0]), metadata),)
    return tuple(
        ShardPlan(f"model-{n:05d}-of-{len(groups):05d}.safetensors", tuple(steps), metadata)
        for n, steps in enumerate(groups, 1)
    )
