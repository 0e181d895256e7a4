"""The files beside the .onnx files of a folder: those of the model, as the runtime needs them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.folder.json_edit import edit_json
from lora_export.checkpoint.reading import parse_json_object
from lora_export.onnx_export.file import external
from lora_export.onnx_export.file.interface import interface
from lora_export.onnx_export.layout.genai_config import GENAI_CONFIG, genai_config, special_tokens
from lora_export.records import SideFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lora_export.onnx_export.layout.layouts import Layout

CONFIG = "config.json"
_GENERATION = "generation_config.json"
_CLIENT = "transformers.js_config"
_DATA = "use_external_data_format"


def files_around(
    layout: Layout, side_files: Sequence[SideFile], folder: Path, graphs: Sequence[str]
) -> tuple[SideFile, ...]:
    """Return what lies beside the .onnx files of a folder.

    Args:
        layout: of the folder.
        side_files: those of the merged model.
        folder: holds the .onnx files, with their external data.
        graphs: the paths of the .onnx files inside it.

    Raises:
        InputError: config.json or generation_config.json is no JSON object.
        UsageError: see genai_config.
    """
    if layout.name == "genai":
        made = _genai(side_files, folder, *graphs)
        return (*(file for file in side_files if file.name != GENAI_CONFIG), made)
    return tuple(
        _with_data(file, folder, graphs) if file.name == CONFIG else file for file in side_files
    )


def _with_data(file: SideFile, folder: Path, graphs: Sequence[str]) -> SideFile:
    """Return config.json with the number of files of external data that each .onnx file has.

    A browser cannot look for them: transformers.js reads the number there.
    """
    numbers = {(folder / name).name: len(external.data_files(folder / name)) for name in graphs}
    found = {name: number for name, number in numbers.items() if number}
    content = _content(file)
    known = parse_json_object(content, file.name, unique_keys=False).get(_CLIENT)
    stale = isinstance(known, dict) and _DATA in known
    if not found and not stale:
        return file
    edit: dict[tuple[str, ...], object] = (
        {(_CLIENT, _DATA): found} if isinstance(known, dict) else {(_CLIENT,): {_DATA: found}}
    )
    edits = (*file.edits, f"{_CLIENT}.{_DATA}: the external data of the .onnx files")
    return SideFile(file.name, None, edit_json(content, edit), edits)


def check_files_around(layout: Layout, side_files: Sequence[SideFile]) -> None:
    """Refuse a model whose files lack what the layout needs: known before anything is made.

    Raises:
        UsageError: see genai_config.special_tokens.
        InputError: config.json or generation_config.json is no JSON object.
    """
    if layout.name == "genai":
        special_tokens(*_configs(side_files))


def _configs(side_files: Sequence[SideFile]) -> Iterator[dict[str, object]]:
    """Yield config.json and generation_config.json; empty where there is none."""
    known = {file.name: file for file in side_files}
    for name in (CONFIG, _GENERATION):
        file = known.get(name)
        yield parse_json_object(_content(file), name, unique_keys=False) if file else {}


def _genai(side_files: Sequence[SideFile], folder: Path, graph: str) -> SideFile:
    face = interface(folder / graph, "")
    made: dict[str, Any] = genai_config(face, graph, *_configs(side_files))
    text = json.dumps(made, indent=4).encode() + b"\n"
    return SideFile(GENAI_CONFIG, None, text, ("new: onnxruntime-genai reads it",))


def _content(file: SideFile) -> bytes:
    return file.source.read_bytes() if file.source else file.content or b""
