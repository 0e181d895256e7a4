"""How much a plan will write, and whether the disk has room for it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.records import MergePlan


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes. needed: of all tensors and side files. free: where the output goes, if known."""

    needed: int
    free: int | None

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {"space": asdict(self)}


def space_for(plan: MergePlan, output: Path | None) -> Space:
    """What `plan` needs, and what is free in the folder that `output` goes to."""
    tensors = sum(step.out.nbytes for step in plan.steps())
    around = sum(
        file.source.stat().st_size if file.source else len(file.content or b"")
        for file in plan.side_files
    )
    return Space(tensors + around, _free(output.parent) if output else None)


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
