"""Checks everything that forbids an output path, before a byte is written.

Paths are compared by device and inode, so links, mounts and letter case cannot hide an input.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Literal, TypeAlias

from lora_export.checkpoint.folder.side_files import MANIFEST_NAME, manifest_beside
from lora_export.checkpoint.header import LENGTH_BYTES
from lora_export.checkpoint.reading import read_json_object, read_start
from lora_export.errors import LoraExportError, OutputError
from lora_export.records import Problem
from lora_export.report.page.frame import HTML_START, MARKDOWN_START
from lora_export.shown import shell_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Every writer begins a ModelProto with ir_version (field 1), its value, and one of the next fields.
_ONNX_VERSION = b"\x08"
_ONNX_NEXT = b"\x12\x1a\x22\x28\x32\x3a\x42"
Kind: TypeAlias = Literal["file", "folder"]
Identity: TypeAlias = "tuple[int, int]"
"""Device and inode of a file."""


def check_folder(output: Path) -> None:
    """Refuse an output path without a folder to write it into: known before anything is read.

    Raises:
        OutputError: the path names no file or folder, or its folder is missing or not writable.
    """
    where = str(output)
    if output.name in {"", ".."}:
        raise OutputError("not the name of a file or folder", where=where, cause="output/place")
    problems = [
        Problem(text, where, hint, cause="output/place")
        for text, hint in _parent_faults(output.parent)
    ]
    if problems:
        raise OutputError.of(problems)


def check_output(
    output: Path, kind: Kind, *, force: bool, inputs: Sequence[Path], beside: Sequence[str] = ()
) -> None:
    """Refuse an output path that may not be written.

    An empty folder may always become a folder. A manifest that a killed run left alone beside the
    output may always be replaced.

    Args:
        output: the path of the artefact.
        kind: whether the artefact is a file or a folder.
        force: replace an output that exists. It must then be of the same kind, and an export.
            That is a folder with our manifest, a file with it beside, or a safetensors or ONNX
            file.
        inputs: files and folders that the output may not be, contain or lie in.
        beside: names of files that will be put into the same folder.

    Raises:
        OutputError: the output exists, touches an input (also by a hard link), or its folder is
            missing or not writable; all reasons are named.
    """
    check_folder(output)
    where = str(output)
    faults = list(_input_faults(output, inputs))[:1]
    problems = [Problem(text, where, hint, cause="output/place") for text, hint in faults]
    if not problems:  # only now: these hints offer --force, which must never replace an input
        problems += [
            Problem(text, where, hint, cause="output/exists")
            for text, hint in _faults(output, kind, force=force)
        ]
        for name in beside:
            path = output.parent / name
            found = _faults(path, "file", force=force or is_left_over(path, output))
            problems += [
                Problem(text, str(path), hint, cause="output/exists") for text, hint in found
            ]
    if problems:
        raise OutputError.of(problems)


def is_left_over(beside: Path, output: Path) -> bool:
    """Return whether `beside` is a manifest of ours without its artefact.

    A run that is killed between the two renames of its publication leaves one.
    """
    if os.path.lexists(output) or not stat.S_ISREG(_mode(beside)):
        return False
    try:
        document = read_json_object(beside)
    except LoraExportError:
        return False
    outputs = document.get("outputs")
    listed = outputs if isinstance(outputs, list) else []
    return any(isinstance(entry, dict) and entry.get("name") == output.name for entry in listed)


def is_page(path: Path) -> bool:
    """Return whether a regular file is a report of ours, which a later one may replace.

    Raises:
        StorageError: the file cannot be read.
    """
    if not stat.S_ISREG(_mode(path)):
        return False
    starts = (HTML_START.encode(), MARKDOWN_START.encode())
    return read_start(path, max(map(len, starts))).startswith(starts)


def is_empty_folder(path: Path) -> bool:
    """Return whether the path is an empty folder, and not a link to one."""
    try:
        return stat.S_ISDIR(_mode(path)) and not any(path.iterdir())
    except OSError:  # one that may not be listed
        return False


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _parent_faults(parent: Path) -> Iterator[tuple[str, str]]:
    if not parent.exists():
        yield f"the folder {parent} does not exist", shell_command(["mkdir", "-p", str(parent)])
    elif not parent.is_dir():
        yield f"{parent} is not a folder", ""
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield f"the folder {parent} is not writable", ""


def _faults(output: Path, kind: Kind, *, force: bool) -> Iterator[tuple[str, str]]:
    """Yield what forbids to replace whatever lies at the output path already, each with a hint."""
    if not os.path.lexists(output) or (kind == "folder" and is_empty_folder(output)):
        return
    mode = output.lstat().st_mode
    if not force:
        is_other = kind == "folder" and not (output / MANIFEST_NAME).is_file()
        other = "choose another name"
        yield "exists already", other if is_other else f"{other}, or replace it with --force"
    elif kind == "file" and not stat.S_ISREG(mode):
        yield "is no regular file, so a file may not replace it", "choose another name"
    elif kind == "folder" and not stat.S_ISDIR(mode):
        yield "is no folder, so a folder may not replace it", "choose another name"
    elif kind == "folder" and not (output / MANIFEST_NAME).is_file():
        text = f"is a folder without {MANIFEST_NAME}, so it is not an export of ours"
        yield text, "choose another name, or remove it yourself"
    elif kind == "file" and not _is_export(output):
        text = "has no manifest beside it and is neither safetensors nor ONNX: it is no export"
        yield text, "choose another name, or remove it yourself"


def _is_export(file: Path) -> bool:
    """Return whether a file is our manifest or report, has a manifest beside it, or is weights."""
    beside = file.with_name(manifest_beside(file))
    if file.name.endswith(f".{MANIFEST_NAME}") or beside.is_file():
        return True
    if is_page(file):
        return True
    start = read_start(file, LENGTH_BYTES + 1)
    if start.startswith(_ONNX_VERSION):
        return len(start) > len(_ONNX_VERSION) + 1 and start[2] in _ONNX_NEXT
    header = int.from_bytes(start[:LENGTH_BYTES], "little")
    return start[LENGTH_BYTES:] == b"{" and LENGTH_BYTES + header <= file.stat().st_size


def _input_faults(output: Path, inputs: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield how the output is, contains or lies inside an input, each with a hint."""
    here = _identity(output)
    around_output = {_identity(folder) for folder in output.parent.resolve().parents}
    around_output.add(_identity(output.parent))
    for path in inputs:
        if not path.exists():
            continue
        folders_around = {_identity(folder) for folder in path.resolve().parents}
        if here is not None and here in _identities(path):
            yield f"is the input {path}, or a file of it", "choose another name"
        elif here is not None and here in folders_around:
            yield f"contains the input {path}", "choose another name"
        elif path.is_dir() and _identity(path) in around_output:
            yield f"lies inside the input {path}", "choose a name outside"


def _identity(path: Path) -> Identity | None:
    """Return device and inode of a path, links followed; None when nothing is there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _identities(path: Path) -> set[Identity | None]:
    """Return the identity of an input and, of a folder, those of its files."""
    inside = path.iterdir() if path.is_dir() else ()
    return {_identity(path), *(_identity(item) for item in inside)}
