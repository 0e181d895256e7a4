"""Checks the files around our own merge's weights: config, tokenizer, index, stray weight files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.folder.side_files import weight_files
from lora_export.checkpoint.reading import read_start
from lora_export.execution.stage import index_bytes
from lora_export.records import SideFile
from lora_export.report.columns import counted, first_names
from lora_export.verification.listed_check import listed_check

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from lora_export.records import Check, MergePlan


def check_side_files(plan: MergePlan, folder: Path) -> tuple[Check, ...]:
    """Check that every planned side file has the planned bytes, and that no weight file is a stray.

    A stray is a weight file that is not planned; a loader may prefer it to the planned ones.
    """
    files, index = plan.side_files, plan.index_name
    if index:
        files = (*files, SideFile(index, None, index_bytes(plan)))
    return check_files(files, folder, {shard.file for shard in plan.shards})


def check_files(
    files: Sequence[SideFile], folder: Path, weights: Collection[str]
) -> tuple[Check, ...]:
    """Check that each file has its planned bytes, and that no weight file is a stray.

    weights: the paths of the weight files that are planned, inside the folder.
    """
    wrong = [
        file.name
        for file in files
        if not holds(folder / file.name, file.source, file.content or b"")
    ]
    planned = {*weights, *(file.name for file in files)}
    wrong += [name for name in weight_files(folder) if name not in planned]
    number = counted(len(files), "file")
    fault = f"{first_names(wrong)} {'is' if len(wrong) == 1 else 'are'} not as planned"
    return (listed_check("side files", wrong, f"{number} around the weights", fault=fault),)


def holds(file: Path, source: Path | None, content: bytes) -> bool:
    """Return whether a file has the bytes of `source`, or of `content` where there is no source."""
    if not file.is_file():
        return False
    if source is None:
        size = len(content)
        return file.stat().st_size == size and read_start(file, size) == content
    return file.stat().st_size == source.stat().st_size and file_sha256(file) == file_sha256(source)
