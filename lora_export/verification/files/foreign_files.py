"""Checks the files around another tool's merge against the plan, by their meaning.

Such a merge need not have the base's tokenizer. It has an index and a config of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import weight_files
from lora_export.checkpoint.reading import parse_json_object
from lora_export.report.columns import first_names
from lora_export.verification.listed_check import listed_check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Check, Checkpoint, MergePlan, SideFile

_CONFIG = "config.json"
_BOOKKEEPING = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype"})
"""Keys of a config that name its writer, or repeat what the weights themselves show."""

_SHOWN = 5
"""Files that a note names."""


def check_foreign_files(
    plan: MergePlan, merged: Checkpoint
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Check the config's meaning and the weight files; note other files that are not as planned.

    The check fails for a config of another meaning, and for a weight file that is not planned: a
    loader may prefer it. The index is not compared: the reader of `merged` has compared it with
    the shards.

    Returns:
        the check, and one note each on missing and on changed files.

    Raises:
        InputError: the planned config is no JSON object.
    """
    folder = merged.root
    planned = {file.name: file for file in plan.side_files}
    config = planned.pop(_CONFIG, None)
    wrong = [_CONFIG] if config and not _means_the_same(config, merged) else []
    own = {shard.file.name for shard in merged.shards} | {merged.index_name, *planned}
    wrong += [name for name in weight_files(folder) if name not in own]
    missing = [name for name in planned if not (folder / name).is_file()]
    other = [
        name
        for name, file in planned.items()
        if name not in missing and (folder / name).read_bytes() != _content(file)
    ]
    notes = [
        *_note(missing, "missing here, as another tool's merge may leave them out"),
        *_note(other, "not the planned bytes, and not proven"),
    ]
    detail = "the config has the planned meaning, and no weight file is a stray"
    if wrong:
        keys = _other_keys(config, merged) if config and _CONFIG in wrong else []
        faults = [f"{_CONFIG} has other values: {first_names(keys)}"] if keys else []
        strays = [name for name in wrong if name != _CONFIG]
        faults += [f"weight files that are not planned: {first_names(strays)}"] if strays else []
        detail = "; ".join(faults) or f"{_CONFIG} is missing or has another meaning"
    return (listed_check("side files", wrong, detail),), tuple(notes)


def _note(names: list[str], what: str) -> list[str]:
    return [f"{first_names(names, _SHOWN)}: {what}"] if names else []


def _content(file: SideFile) -> bytes:
    return file.source.read_bytes() if file.source else file.content or b""


def _means_the_same(planned: SideFile, merged: Checkpoint) -> bool:
    """Return whether both configs are the same with the defaults of their model type."""
    if not (merged.root / _CONFIG).is_file():
        return False
    return _planned(planned) == merged.config or not _other_keys(planned, merged)


def _planned(planned: SideFile) -> dict[str, object]:
    return parse_json_object(_content(planned), planned.name, unique_keys=False, tagged_floats=True)


def _other_keys(planned: SideFile, merged: Checkpoint) -> list[str]:
    """Return the keys with another value than planned, and those that only one config has."""
    wanted, found = _meaning(_planned(planned)), _meaning(merged.config)
    return sorted(
        key
        for key in wanted.keys() | found.keys()
        if key not in wanted or key not in found or wanted[key] != found[key]
    )


def _meaning(config: Mapping[str, object]) -> dict[str, object]:
    """Return the config with the defaults of its model type, which some writers leave out.

    A config that transformers does not know is returned as it is.
    """
    whole = dict(config)
    try:
        from transformers import CONFIG_MAPPING

        whole = CONFIG_MAPPING[str(config.get("model_type"))].from_dict(whole).to_dict()
    except Exception:  # noqa: BLE001, S110 - huggingface_hub's errors have no closer common base
        pass
    return {key: value for key, value in whole.items() if key not in _BOOKKEEPING}
