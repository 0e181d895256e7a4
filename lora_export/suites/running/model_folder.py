"""The files that the code of --model may read and still be cached: all below its own folder.

Python tells which files its own code opens, and nothing tells what compiled code opens. So every
file of the folder is part of the key, whether it is read or not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.shown import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from lora_export.suites.running.content_key import Digests

FILES = 500
SIZE = 64 << 20
MOST = 10 * FILES
"""The most files and bytes of a folder, inputs of the row aside; a larger one is not cached.

MOST bounds the files that are listed, inputs among them.
"""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The content of the folder of a model's file."""

    content: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each file by its name in the folder; empty for a row without --model."""
    files: frozenset[Path] = frozenset()
    """The same files, with their links resolved."""
    why_not: str = ""
    """Why a row of this model is not cached; "" where it may be."""


def model_folder(
    target: str, digests: Digests, *, inputs: Collection[Path], without: Collection[Path]
) -> ModelFolder:
    """Read the folder of a model's file.

    Args:
        target: as given to --model; "" for none.
        digests: of the files on disk.
        inputs: files that do not count for the bound, as they are hashed in any case.
        without: files and folders that the run itself writes, such as its reports; left out.

    Raises:
        OSError, StorageError: a file cannot be read.
    """
    if not target:
        return ModelFolder()
    place = Path(target.rpartition(":")[0])
    if place.suffix != ".py":
        return ModelFolder(why_not=f"{shown(target)} is a module, and no file")
    if place.is_symlink():
        return ModelFolder(why_not=f"{shown(str(place))} is a link to another folder")
    found = list(islice(_below(place.parent, {path.resolve() for path in without}), MOST))
    if links := [path for path in found if path.is_dir()]:
        return ModelFolder(why_not=f"{shown(str(links[0]))} is a link to a folder")
    files = {path: path.resolve() for path in found if path.is_file()}
    counted = set(files.values()) - {path.resolve() for path in inputs}
    size = sum(path.stat().st_size for path in counted)
    if len(found) == MOST or len(counted) > FILES or size > SIZE:
        bound = f"{FILES} files or {SIZE >> 20} MiB"
        return ModelFolder(why_not=f"the folder of {shown(str(place))} has more than {bound}")
    content = {path.relative_to(place.parent).as_posix(): digests.of(path) for path in files}
    return ModelFolder({**content, "": Path(target).name}, frozenset(files.values()))


def _below(folder: Path, left_out: Collection[Path]) -> Iterator[Path]:
    """Yield the files below a folder, and links to folders.

    Hidden folders, compiled Python and virtual environments are left out.
    """
    for root, folders, names in os.walk(folder):
        inner = sorted(Path(root) / name for name in folders)
        yield from (path for path in inner if path.is_symlink())
        folders[:] = [path.name for path in inner if _is_entered(path, left_out)]
        files = (Path(root) / name for name in sorted(names))
        yield from (path for path in files if path.resolve() not in left_out)


def _is_entered(path: Path, left_out: Collection[Path]) -> bool:
    hidden = path.name.startswith(".") or path.name == "__pycache__"
    return not hidden and not (path / "pyvenv.cfg").exists() and path.resolve() not in left_out
