"""Names what is wrong with the files around the weights, for a report of a failed check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG
from lora_export.records import Finding
from lora_export.report.columns import counted, first_names
from lora_export.verification.files.folder_differences import CONFIG, compare_folder

if TYPE_CHECKING:
    from lora_export.records import Checkpoint, MergePlan


def file_findings(plan: MergePlan, merged: Checkpoint) -> tuple[Finding, ...]:
    """Return what is wrong with the files of a folder, the worst first; none for a single file.

    Raises:
        InputError: the planned config is no JSON object.
        StorageError: a file cannot be read.
    """
    if not plan.base.layout == merged.layout == "folder":
        return ()
    found = compare_folder(plan, merged)
    listed: list[tuple[str, str, tuple[str, ...]]] = []
    if found.is_adapter:
        message = "transformers loads this folder as an adapter, by the adapter_config.json in it"
        listed.append(("adapter-config-left", message, (ADAPTER_CONFIG,)))
    if found.is_config_missing:
        message = "the config.json is missing, so transformers cannot build the model"
        listed.append(("config-missing", message, (CONFIG,)))
    if found.config_keys:
        message = f"the config has other values: {first_names(found.config_keys)}"
        listed.append(("config-changed", message, (CONFIG,)))
    if found.strays:
        number = counted(len(found.strays), "weight file")
        message = f"{number} not part of the merge, which a loader may take"
        listed.append(("stray-weights", message, found.strays))
    return tuple(Finding(*one) for one in listed)
