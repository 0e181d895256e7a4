"""Decides which files of a model folder are weights, and which go along with them unchanged."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.links import leaving
from lora_export.checkpoint.limits import JSON
from lora_export.checkpoint.reading import (
    LFS_START,
    PICKLE_START,
    ZIP_START,
    fail_on,
    parse_json,
    read_start,
    reading,
)
from lora_export.records import Problem, SideFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MANIFEST_NAME = "lora_export.json"
"""The name of the manifest inside a folder that is an output."""

ADAPTER_CONFIG = "adapter_config.json"
"""The file in which PEFT saves an adapter's config."""

MAX_NAME_BYTES = 255
"""Bytes of a file's name on every common file system (NAME_MAX)."""

MAX_DEPTH = 4
"""How many folders deep side files are looked for; a deeper tree is probably no model's."""

TORCH_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
FOREIGN_SUFFIXES = (
    ".h5", ".msgpack", ".onnx", ".onnx_data", ".onnx.data", ".gguf", ".ggml", ".ckpt", ".ot",
    ".tflite", ".npz", ".pb", ".mlmodel", ".mlpackage",
)  # fmt: skip
_FURTHER_DATA = re.compile(r".*\.onnx[._]data_\d+")
"""transformers.js' names of further files of external data: model.onnx_data_1."""
_NO_WEIGHTS = frozenset({"training_args.bin"})
_CHECKPOINT_FOLDER = re.compile(r"checkpoint-\d+")
"""A folder in which transformers' Trainer saved a step of the training."""

_BIN_STARTS = (ZIP_START, PICKLE_START, LFS_START)
"""The first bytes of a .bin file that holds weights of torch, or stands for one."""


def manifest_beside(output: Path) -> str:
    """Return the name of the manifest beside an artefact that is one file."""
    return f"{output.name}.{MANIFEST_NAME}"


def manifest_path(root: Path) -> Path:
    """Return where the manifest of an artefact lies: inside a folder, beside a file."""
    return root / MANIFEST_NAME if root.is_dir() else root.with_name(manifest_beside(root))


def is_torch_weights(path: Path) -> bool:
    """Return whether a file holds weights, or an optimizer's state, of torch.

    The name decides. For a .bin file of an unusual name the first bytes decide, as other programs
    use this ending too.
    """
    name = path.name.lower()
    if not name.endswith(TORCH_SUFFIXES) or name in _NO_WEIGHTS:
        return False
    if not name.endswith(".bin") or name.startswith(("pytorch_model", "adapter_model")):
        return True
    return read_start(path, 32).startswith(_BIN_STARTS) or _is_safetensors(path)


def _is_safetensors(path: Path) -> bool:
    return read_start(path, 9)[8:] == b"{"


def is_foreign_weights(path: Path) -> bool:
    """Return whether a file, by its name, holds weights of another framework than torch.

    Lightning writes .ckpt files with torch, so they are none.
    """
    name = path.name.lower()
    return path.is_file() and _is_foreign(name) and not name.endswith(".ckpt")


def _is_foreign(name: str) -> bool:
    return name.endswith(FOREIGN_SUFFIXES) or bool(_FURTHER_DATA.fullmatch(name))


def is_weights(path: Path) -> bool:
    """Return whether a file holds weights of any framework, or is the index of such files."""
    name = path.name.lower()
    return (
        _is_foreign(name)
        or name.endswith(".index.json")
        or name.startswith("openvino")
        or is_torch_weights(path)
    )


def weight_files(folder: Path) -> list[str]:
    """List every weight file and index in `folder` and below, hidden folders left out.

    The result holds relative paths, sorted.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = folder.joinpath(os.path.relpath(place, folder))
        found += [(inside / name).relative_to(folder) for name in names]
    return sorted(path.as_posix() for path in found if is_weights(folder / path))


def files_there(folder: Path, names: Iterable[str]) -> list[str]:
    """Return those of the relative paths that are files of the folder, in their order.

    A manifest may name any number of files. Those that are not there cost a look at their names.

    Raises:
        InputError: a path is too long.
        StorageError: the folder cannot be read.
    """
    with reading(folder):
        here = {item.name for item in folder.iterdir()}
        near = [name for name in names if name.partition("/")[0] in here]
        return [name for name in near if (folder / name).is_file()]


def list_side_files(folder: Path, *, follow_links: bool = False) -> tuple[SideFile, ...]:
    """List the files of `folder` and its sub-folders that are no weights, sorted by name.

    Left out: weights of any framework, hidden files and folders, adapters' configs, earlier
    manifests of ours, `checkpoint-N` folders, and what is no regular file. Weights stay in a
    sub-folder that modules.json names, such as sentence-transformers' 2_Dense.

    A link to a folder is followed, as by a library that loads the model. A link inside such a
    folder to another folder is not.

    follow_links: accept links that lead out of the folder; see links.leaving.

    Raises:
        InputError: a link leads nowhere or out of the folder, or folders are nested deeper than
            MAX_DEPTH, or by links.
    """
    problems: list[Problem] = []
    modules = module_folders(folder)
    files = []
    for path in _walk(folder, 0, problems):
        name = path.relative_to(folder).as_posix()
        is_module_file = name.rpartition("/")[0] in modules and is_torch_weights(path)
        if is_module_file or not is_weights(path):
            files.append(SideFile(name, path))
    if not follow_links:
        problems += leaving(folder, [file.source for file in files if file.source])
    fail_on(problems)
    return tuple(files)


def _walk(
    folder: Path, depth: int, problems: list[Problem], *, is_linked: bool = False
) -> Iterator[Path]:
    """Yield the files below a folder. `is_linked`: a link has led to it."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.endswith((MANIFEST_NAME, ADAPTER_CONFIG)):
            continue
        if entry.is_file():
            yield path
        elif entry.is_dir() and not _CHECKPOINT_FOLDER.fullmatch(entry.name):
            if depth == MAX_DEPTH:
                problems.append(_too_deep(path))
            elif is_linked and entry.is_symlink():  # it may lead in a circle
                message = "a linked folder inside a linked folder"
                hint = "put the folder itself there, or take the link away"
                problems.append(Problem(message, str(path), hint, cause="input/side-files"))
            else:
                linked = is_linked or entry.is_symlink()
                yield from _walk(path, depth + 1, problems, is_linked=linked)
        elif entry.is_symlink() and not path.exists():
            problems.append(
                Problem("a symbolic link that leads nowhere", str(path), cause="input/side-files")
            )


def _too_deep(path: Path) -> Problem:
    hint = "give a folder that holds the model alone"
    return Problem(
        f"folders nested deeper than {MAX_DEPTH}", str(path), hint, cause="input/side-files"
    )


def is_plain_path(name: str) -> bool:
    """Return whether a name from a file is a relative path that stays inside a folder.

    Each part must be a name that a file can have.
    """
    parts = name.split("/")
    if "\\" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(parts):
        return False
    try:
        return max(len(part.encode()) for part in parts) <= MAX_NAME_BYTES
    except UnicodeEncodeError:
        return False


def module_folders(folder: Path) -> frozenset[str]:
    """Return the sub-folders that modules.json of sentence-transformers names.

    Raises:
        InputError: modules.json is no JSON.
    """
    listing = folder / "modules.json"
    if not listing.is_file():
        return frozenset()
    modules = parse_json(read_start(listing, JSON.size + 1), str(listing))
    items = modules if isinstance(modules, list) else []
    paths = (item.get("path") for item in items if isinstance(item, dict))
    return frozenset(path for path in paths if isinstance(path, str) and path)
