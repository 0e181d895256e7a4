"""Hold what lies around the weights of another tool's merge against the plan, by its meaning.

Such a merge need not have the base's tokenizer, and it writes its own index and configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import weight_files
from lora_export.checkpoint.reading import parse_json_object
from lora_export.records import Check
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Checkpoint, MergePlan, SideFile

_CONFIG = "config.json"
_BOOKKEEPING = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype"})
"""Keys of a configuration that say who wrote it, or what the weights themselves show."""

_SHOWN = 5


def check_foreign_files(
    plan: MergePlan, merged: Checkpoint
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """The check, and notes on files that are missing or other than planned.

    The check fails for a configuration of another meaning and for a weight file that no loader was
    meant to find. The reader of `merged` has held the index against its shards already.
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
        *_told(missing, "not in it: a merge of another tool need not have what the base has"),
        *_told(other, "not the planned bytes, and not proven"),
    ]
    detail = "the configuration means what is planned, and no weight file is a stray"
    if wrong:
        keys = _other_keys(config, merged) if config and _CONFIG in wrong else []
        told = [f"{_CONFIG} has other values: {first_names(keys)}"] if keys else []
        strays = [name for name in wrong if name != _CONFIG]
        told += [f"weight files that no loader reads: {first_names(strays)}"] if strays else []
        detail = "; ".join(told) or f"{_CONFIG} is missing or means something else"
    check = Check("side files", not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail)
    return (check,), tuple(notes)


def _told(names: list[str], what: str) -> list[str]:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{shown}{more}: {what}"] if names else []


def _content(file: SideFile) -> bytes:
    return file.source.read_bytes() if file.source else file.content or b""


def _means_the_same(planned: SideFile, merged: Checkpoint) -> bool:
    """Whether transformers reads both alike; where it cannot, whether both have the same keys."""
    if not (merged.root / _CONFIG).is_file():
        return False
    return _planned(planned) == merged.config or not _other_keys(planned, merged)


def _planned(planned: SideFile) -> dict[str, object]:
    return parse_json_object(_content(planned), planned.name, unique_keys=False, tagged_floats=True)


def _other_keys(planned: SideFile, merged: Checkpoint) -> list[str]:
    """Keys with another value than planned, or that one of both lacks."""
    wanted, found = _meaning(_planned(planned)), _meaning(merged.config)
    return sorted(
        key
        for key in wanted.keys() | found.keys()
        if key not in wanted or key not in found or wanted[key] != found[key]
    )


def _meaning(config: Mapping[str, object]) -> dict[str, object]:
    """The configuration with the defaults of its model type, which some writers leave out."""
    whole = dict(config)
    try:
        from transformers import CONFIG_MAPPING

        whole = CONFIG_MAPPING[str(config.get("model_type"))].from_dict(whole).to_dict()
    except Exception:  # noqa: BLE001, S110 - huggingface_hub's derive from nothing else
        pass
    return {key: value for key, value in whole.items() if key not in _BOOKKEEPING}
