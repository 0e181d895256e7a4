"""Warnings about files beside the base's weights: a manifest of an earlier merge, an adapter."""

from __future__ import annotations

from filecmp import cmp
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.checkpoint.folder.recorded import Recorded
    from lora_export.records import Adapter


def warnings_of_base(
    root: Path, adapters: Sequence[Adapter], recorded: Recorded | None
) -> tuple[str, ...]:
    """Warn where the base is a result of this tool, or holds an adapter that takes no part.

    recorded: the base's own manifest.
    """
    return (*_merged_base(recorded), *_left_beside(root, adapters))


def _merged_base(recorded: Recorded | None) -> list[str]:
    """Warn where the base is a result of this tool."""
    if recorded is None or not recorded.adapters:
        return []
    names = first_names([adapter.name for adapter in recorded.adapters])
    return [f"the base is itself a merge of {names}, by its manifest: the adapters add up"]


def _left_beside(folder: Path, adapters: Sequence[Adapter]) -> list[str]:
    """Warn where the base's folder holds an adapter that takes no part.

    transformers loads such an adapter with the base, so the training may have used it.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return []
    pairs = [(adapter.path, folder / adapter.path.name) for adapter in adapters]
    if any(beside.is_file() and cmp(named, beside, shallow=False) for named, beside in pairs):
        return []
    hint = "name the folder as an ADAPTER as well, if it is meant"
    return [f"the base's folder holds an adapter too, which is not merged: {hint}"]
