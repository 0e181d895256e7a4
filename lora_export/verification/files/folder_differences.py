"""Compares the files around a merge's weights with the planned ones, by their meaning.

Another tool's merge need not have the base's tokenizer. It has an index and a config of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.side_files import ADAPTER_CONFIG, weight_files
from lora_export.checkpoint.reading import parse_json_object
from lora_export.verification.files.side_file_check import holds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.records import Checkpoint, MergePlan, SideFile

CONFIG = "config.json"
_BOOKKEEPING = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype"})
"""Keys of a config that name its writer, or repeat what the weights themselves show."""

_LOADED = re.compile(
    r"(?:generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|"
    r"chat_template|preprocessor_config|processor_config|image_processor_config|"
    r"video_preprocessor_config|feature_extractor_config|modules|sentence_bert_config)\.\w+"
    r"|merges\.txt|(?:spiece|sentencepiece.*|tokenizer)\.model|[^/]*\.py"
)
"""Names of files that transformers or sentence-transformers load beside config.json."""


@dataclass(frozen=True, slots=True)
class FolderDifferences:
    """How the files around the weights differ from the planned ones, by relative paths."""

    is_config_missing: bool
    config_keys: tuple[str, ...]
    """The keys of config.json that have another value, or that only one config has."""
    strays: tuple[str, ...]
    """Weight files that are not planned; a loader may prefer them."""
    is_adapter: bool
    """Whether an adapter_config.json makes transformers load the folder as an adapter."""
    missing: tuple[str, ...]
    """Planned files that are not there, under any name."""
    renamed: Mapping[str, str]
    """Where the content of a missing file is, by its planned name."""
    changed: tuple[str, ...]
    """Files of other bytes than planned, without config.json."""
    added: tuple[str, ...]
    """Files that are not planned, without weights."""


def is_loaded(name: str) -> bool:
    """Return whether transformers loads a file of this name beside config.json and weights."""
    return _LOADED.fullmatch(name.rpartition("/")[2]) is not None


def compare_folder(plan: MergePlan, merged: Checkpoint) -> FolderDifferences:
    """Compare the folder of `merged` with the planned files.

    The index is not compared: the reader of `merged` has compared it with the shards.

    Raises:
        InputError: the planned config is no JSON object.
        StorageError: a file cannot be read.
    """
    folder = merged.root
    planned = {file.name: file for file in plan.side_files}
    config = planned.pop(CONFIG, None)
    own = {shard.file.name for shard in merged.shards} | {merged.index_name, *planned}
    there = {name for name in planned if (folder / name).is_file()}
    added = [f.name for f in merged.side_files if f.name not in planned and f.name != CONFIG]
    lost = [name for name in planned if name not in there]
    renamed = _renamed(folder, {name: planned[name] for name in lost}, added)
    is_missing = config is not None and not (folder / CONFIG).is_file()
    return FolderDifferences(
        is_config_missing=is_missing,
        config_keys=_other_keys(config, merged) if config and not is_missing else (),
        strays=tuple(name for name in weight_files(folder) if name not in own),
        is_adapter=(folder / ADAPTER_CONFIG).is_file(),
        missing=tuple(name for name in lost if name not in renamed),
        renamed=renamed,
        changed=tuple(
            name
            for name, file in planned.items()
            if name in there and not _has_bytes(folder / name, file)
        ),
        added=tuple(name for name in added if name not in renamed.values()),
    )


def _renamed(folder: Path, lost: Mapping[str, SideFile], added: list[str]) -> dict[str, str]:
    """Return where the content of each lost file is, if it is there; empty files are not sought."""
    return {
        name: other
        for name, file in lost.items()
        for other in added
        if (folder / other).stat().st_size and _has_bytes(folder / other, file)
    }


def _has_bytes(path: Path, file: SideFile) -> bool:
    return holds(path, file.source, file.content or b"")


def _content(file: SideFile) -> bytes:
    return file.source.read_bytes() if file.source else file.content or b""


def _other_keys(planned: SideFile, merged: Checkpoint) -> tuple[str, ...]:
    """Return the keys of other meaning, where each config has the defaults of its model type."""
    config = parse_json_object(
        _content(planned), planned.name, unique_keys=False, tagged_floats=True
    )
    if config == merged.config:
        return ()
    wanted, found = _meaning(config), _meaning(merged.config)
    return tuple(
        sorted(
            key
            for key in wanted.keys() | found.keys()
            if key not in wanted or key not in found or wanted[key] != found[key]
        )
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
