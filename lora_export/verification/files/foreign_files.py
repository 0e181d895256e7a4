"""Checks the files around another tool's merge against the plan, by their meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.report.columns import first_names
from lora_export.verification.files.folder_differences import CONFIG, compare_folder, is_loaded
from lora_export.verification.listed_check import listed_check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.records import Check, Checkpoint, MergePlan
    from lora_export.verification.files.folder_differences import FolderDifferences

_SHOWN = 5
"""Files that a note names."""


def check_foreign_files(
    plan: MergePlan, merged: Checkpoint
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Check the config's meaning and the weight files; note other files that are not as planned.

    The check fails for a config of another meaning, for a weight file that is not planned, and for
    an adapter_config.json: a loader may prefer the one, and loads an adapter by the other.

    Returns:
        the check, and notes on files that are missing, renamed, added or changed.

    Raises:
        InputError: the planned config is no JSON object.
    """
    found = compare_folder(plan, merged)
    wrong = [CONFIG] if found.is_config_missing or found.config_keys else []
    wrong += found.strays
    wrong += [ADAPTER_CONFIG] if found.is_adapter else []
    detail = "the config has the planned meaning, and no weight file is a stray"
    if wrong:
        detail = "; ".join(_faults(found))
    return (listed_check("side files", wrong, detail),), tuple(_notes(found))


def _faults(found: FolderDifferences) -> Iterator[str]:
    if found.is_config_missing:
        yield f"{CONFIG} is missing"
    if found.config_keys:
        yield f"{CONFIG} has other values: {first_names(found.config_keys)}"
    if found.strays:
        yield f"weight files that are not planned: {first_names(found.strays)}"
    if found.is_adapter:
        yield f"{ADAPTER_CONFIG} makes transformers load an adapter from this folder"


def _notes(found: FolderDifferences) -> Iterator[str]:
    loaded = [name for name in found.missing if is_loaded(name)]
    others = [name for name in found.missing if name not in loaded]
    added = [name for name in found.added if is_loaded(name)]
    yield from _note(loaded, "missing here; transformers looks for them in this folder")
    yield from _note(others, "missing here, as another tool's merge may leave them out")
    yield from _note(
        [f"{other} ({name} of the base)" for name, other in found.renamed.items()], "renamed"
    )
    yield from _note(added, "not in the base; transformers reads them, and they are not proven")
    yield from _note(found.changed, "not the planned bytes, and not proven")


def _note(names: Sequence[str], what: str) -> list[str]:
    return [f"{first_names(names, _SHOWN)}: {what}"] if names else []
