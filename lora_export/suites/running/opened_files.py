"""Which files Python opens while a row runs, and which of them are the user's.

The code of --model may read anything. Python reports every file that its own code opens to an
audit hook. It does not know what compiled code opens, such as that of safetensors.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.onnx_export.capture.captures import COUNT_SUFFIX, SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CAPTURED = (SUFFIX, COUNT_SUFFIX)
_LISTENING: list[set[str]] = []
_installed: list[bool] = []


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if not _LISTENING or event != "open":
        return
    path, _, flags = (*arguments, None, None, None)[:3]
    if isinstance(flags, int) and flags & _WRITES:
        return
    if isinstance(path, str | bytes):  # an error raised here would be that of the open
        for heard in _LISTENING:
            heard.add(os.fsdecode(path))


@contextmanager
def opened_files(heard: set[str]) -> Iterator[None]:
    """Add the paths that are opened for reading inside the block to `heard`."""
    if not _installed:
        sys.addaudithook(_hear)  # it stays for the life of the process, and does nothing then
        _installed.append(True)
    _LISTENING.append(heard)
    try:
        yield
    finally:
        _LISTENING.pop()


def source_of(path: Path) -> Path:
    """Return the source of compiled Python: that alone changes when it is edited."""
    if path.suffix != ".pyc":
        return path
    try:
        return Path(util.source_from_cache(str(path)))
    except ValueError:
        return path


def is_installed(path: Path, *, without: Path | None = None) -> bool:
    """Return whether a file is none of the user's.

    It belongs to Python, to an installed package, to lora_export or to the system then, or is a
    captured graph, which a run makes again.

    without: a folder whose files are not the user's either.
    """
    roots = (*_ROOTS, *([without.absolute()] if without else []))
    packages = {"site-packages", "dist-packages"}.intersection(path.parts)
    if packages or path.suffix in _CAPTURED or any(map(path.is_relative_to, roots)):
        return True
    return any(map(path.is_relative_to, _SYSTEM)) and not path.is_relative_to(_MEMORY)


PACKAGE = Path(__file__).parents[2]
"""The folder of lora_export, whose code has a digest of its own in every key."""

# sys.prefix is no root: the user's files lie below it where that is a folder of theirs, or /usr.
_PYTHON = [
    Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")
]
_ROOTS = (PACKAGE, *_PYTHON)
_SYSTEM = tuple(map(Path, ("/etc", "/proc", "/sys", "/dev")))
_MEMORY = Path("/dev") / "shm"  # users keep files there, in memory
