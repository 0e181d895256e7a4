"""Hold what lies around the weights against the plan: configuration, tokenizer, index, strays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.folder.side_files import weight_files
from lora_export.execution.stage import index_bytes
from lora_export.records import Check

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.records import MergePlan


def check_side_files(plan: MergePlan, folder: Path) -> tuple[Check, ...]:
    """Every planned file around the weights has the planned bytes, and no weight file is a stray.

    A loader may prefer the stray to what was planned.
    """
    wrong = [
        file.name
        for file in plan.side_files
        if not _holds(folder / file.name, file.source, file.content or b"")
    ]
    index = plan.index_name
    if index and not _holds(folder / index, None, index_bytes(plan)):
        wrong.append(index)
    planned = {shard.file for shard in plan.shards} | {file.name for file in plan.side_files}
    wrong += [name for name in weight_files(folder) if name not in {*planned, index}]
    detail = f"{len(plan.side_files) + bool(index)} files around the weights are as planned"
    return (Check("side files", not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail),)


def _holds(file: Path, source: Path | None, content: bytes) -> bool:
    if not file.is_file():
        return False
    if source is None:
        return file.read_bytes() == content
    return file.stat().st_size == source.stat().st_size and file_sha256(file) == file_sha256(source)
