"""Checks that a merged checkpoint is the result that an undo file belongs to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lora_export.execution.digests import hash_files
from lora_export.execution.undo_description import RESULT
from lora_export.report.columns import counted
from lora_export.report.stopwatch import unseen
from lora_export.verification.listed_check import listed_check

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.records import Check, Checkpoint
    from lora_export.report.stopwatch import Advance

_SHOWN = 16
"""Digits of a digest in a message."""


def check_result(
    merged: Checkpoint,
    description: Mapping[str, Any],
    undo: Path,
    progress: Advance = unseen,
) -> tuple[Check, ...]:
    """Check that every weight file has a SHA-256 that the undo file records; its name is free.

    An undo file of an earlier version records none. The restored files are then compared alone.

    Args:
        merged: the checkpoint that is to be undone.
        description: what the undo file describes; see execution.undo.read_undo.
        undo: the undo file, for messages.
        progress: called with the bytes done so far, and in all.

    Raises:
        StorageError: a file cannot be read.
    """
    recorded = description.get(RESULT)
    if not isinstance(recorded, list):
        return ()
    found = hash_files([shard.file for shard in merged.shards], os.cpu_count() or 1, progress)
    wrong = {file: digest for file, digest in found.items() if digest not in recorded}
    detail = f"{counted(len(found), 'weight file')} with the SHA-256 that {undo.name} records"
    if wrong:
        file, digest = next(iter(wrong.items()))
        detail = f"{file.name} has the SHA-256 {digest[:_SHOWN]}, which {undo.name} does not record"
    hint = "give the checkpoint as merge wrote it, or the undo file of this merge"
    names = [file.name for file in wrong]
    return (listed_check("the undo file belongs to the checkpoint", names, detail, hint),)
