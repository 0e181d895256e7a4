"""The bytes that a plan takes, and the refusal before a disk runs full."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_export.errors import StorageError
from lora_export.execution.arithmetic import memory_needed
from lora_export.records import FLOAT_DTYPES

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.records import MergePlan


@dataclass(frozen=True, slots=True)
class Space:
    """What a plan takes, in bytes."""

    #: On disk, of all tensors and side files.
    needed: int
    #: Free where the output goes; None where the system does not say.
    free: int | None
    #: In memory, beside the interpreter and torch; it does not grow with the model.
    memory: int

    def beside(self, more: int) -> Space:
        """Return the space with `more` bytes added to those that are to be written."""
        return replace(self, needed=self.needed + more)

    def facts(self) -> dict[str, Any]:
        """Return the entry of the report."""
        return {"space": asdict(self)}


def space_for(plan: MergePlan, output: Path | None, jobs: int | None = None) -> Space:
    """Return what `plan` takes in `jobs` threads, and what is free where `output` goes."""
    tensors = sum(step.out.nbytes for step in plan.steps())
    around = sum(
        file.source.stat().st_size if file.source else len(file.content or b"")
        for file in plan.side_files
    )
    memory = memory_needed(plan, jobs or os.cpu_count() or 1)
    return Space(tensors + around, _free(output.parent) if output else None, memory)


def float32_bytes(plan: MergePlan) -> int:
    """Return the bytes of the merged weights in float32, as an ONNX file holds them."""
    specs = (step.out for step in plan.steps())
    return sum(4 * spec.elements for spec in specs if spec.dtype in FLOAT_DTYPES)


def refuse_too_little(space: Space, output: Path) -> None:
    """Refuse an output for which the disk has no room, before anything is written.

    Raises:
        StorageError: the disk has less free than the plan needs.
    """
    if space.free is not None and space.free < space.needed:
        raise StorageError(
            f"{space.needed:,} bytes are to be written, {space.free:,} are free there",
            where=str(output),
            hint="make room, or name an output on another disk",
            cause="storage/full",
        )


def _free(folder: Path) -> int | None:
    """Return the bytes that this user may still write; None where the system does not say."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None
