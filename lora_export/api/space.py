"""How much a plan will write, and whether the disk has room for it."""

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
    """Bytes. needed: of all tensors and side files. free: where the output goes, if known.

    memory: beside the interpreter and torch; it does not grow with the model.
    """

    needed: int
    free: int | None
    memory: int

    def beside(self, more: int) -> Space:
        """With so many bytes more to be written."""
        return replace(self, needed=self.needed + more)

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {"space": asdict(self)}


def space_for(plan: MergePlan, output: Path | None, jobs: int | None = None) -> Space:
    """What `plan` needs in `jobs` threads, and what is free in the folder `output` goes to."""
    tensors = sum(step.out.nbytes for step in plan.steps())
    around = sum(
        file.source.stat().st_size if file.source else len(file.content or b"")
        for file in plan.side_files
    )
    memory = memory_needed(plan, jobs or os.cpu_count() or 1)
    return Space(tensors + around, _free(output.parent) if output else None, memory)


def float32_bytes(plan: MergePlan) -> int:
    """What an ONNX file of the merged weights takes, beside its graph."""
    specs = (step.out for step in plan.steps())
    return sum(4 * spec.elements for spec in specs if spec.dtype in FLOAT_DTYPES)


def refuse_too_little(space: Space, output: Path) -> None:
    """Stop before anything is written.

    Raises:
        StorageError: less is free than is needed.
    """
    if space.free is not None and space.free < space.needed:
        raise StorageError(
            f"{space.needed:,} bytes are to be written, {space.free:,} are free there",
            where=str(output),
            hint="make room, or name an output on another disk",
        )


def _free(folder: Path) -> int | None:
    """Bytes that this user may still write; None where the system does not say."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None
