"""Which files a row reads: what a pass depends on, whoever opens it.

The code of --model may read anything beside it. Python reports every file that its own code opens
to an audit hook, so no list of suffixes has to guess.
"""

from __future__ import annotations

import os
import sys
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
def opened_files() -> Iterator[set[str]]:
    """Yield the paths that are opened for reading inside the block, as they are opened."""
    if not _installed:
        sys.addaudithook(_hear)  # it stays for the life of the process, and does nothing then
        _installed.append(True)
    heard: set[str] = set()
    _LISTENING.append(heard)
    try:
        yield heard
    finally:
        _LISTENING.remove(heard)


def own_files(heard: set[str], *, without: Path) -> list[Path]:
    """Return the user's files among `heard` and the sources of the loaded modules.

    Files of Python and of installed packages are left out: their versions are known. So are files
    below `without`, captured graphs, which a run makes again, and what is no regular file any more.
    """
    modules = [getattr(module, "__file__", None) for module in [*sys.modules.values()]]
    paths = {Path(name).absolute() for name in [*heard, *filter(None, modules)] if name}
    sources = {_source(path) for path in paths}
    kept = (p for p in sources if p.suffix not in _CAPTURED and not _is_known(p, without))
    return sorted(path for path in kept if path.is_file())


def _source(path: Path) -> Path:
    """Return the source of compiled Python: that alone changes when it is edited."""
    if path.suffix != ".pyc":
        return path
    try:
        return Path(util.source_from_cache(str(path)))
    except ValueError:
        return path


def _is_known(path: Path, without: Path) -> bool:
    roots = (without.absolute(), "/proc", "/sys", "/dev")
    return is_installed(path) or any(path.is_relative_to(root) for root in roots)


def is_installed(path: Path) -> bool:
    """Return whether a file belongs to Python, to an installed package or to lora_export."""
    roots = (sys.prefix, sys.base_prefix, PACKAGE)
    return "site-packages" in path.parts or any(path.is_relative_to(root) for root in roots)


PACKAGE = Path(__file__).parents[2]
"""The folder of lora_export, whose code has a digest of its own in every key."""
