"""Keeps the code of one case's --model away from another's, and knows what that code reads.

Two models may each import a sibling named `data`. A command is a process and sees one of them; the
rows of a suite share a process.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.suites.running.opened_files import is_installed, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(slots=True)
class UserCode:
    """What the rows of one case share: their modules are imported once."""

    before: Mapping[str, Path] = field(default_factory=dict)
    """The user's modules that were loaded before the case, with their sources."""
    opened: set[str] = field(default_factory=set)
    """The files that Python has opened for the rows of the case so far."""
    model: Mapping[str, str] | None = None
    """The content of the model's folder before the first row; None before that."""

    def loaded(self) -> dict[str, str]:
        """Return the SHA-256 of the modules that were loaded before the case.

        Raises:
            OSError: one of them cannot be read.
        """
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in self.before.items()
            if path.is_file()
        }

    def strangers(self, known: frozenset[Path], *, without: Path) -> list[Path]:
        """Return the user's files that the case has read and that are not among `known`.

        without: the folder that the row writes into.
        """
        modules = {path for name, path in _user_modules().items() if name not in self.before}
        sources = {source_of(Path(name).absolute()) for name in self.opened if name} | modules
        outside = (path for path in sources if not is_installed(path, without=without))
        return sorted(path for path in outside if path.is_file() and path.resolve() not in known)


@contextmanager
def modules_of_its_own() -> Iterator[UserCode]:
    """Forget the user's modules that are imported inside the block, and restore sys.path.

    A module that one of another file has replaced under its name is put back: what is loaded before
    a case is part of the key of its passes.
    """
    before, path = dict(sys.modules), [*sys.path]
    try:
        yield UserCode(_user_modules())
    finally:
        sys.path[:] = path
        for name in _user_modules():
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]


def _user_modules() -> dict[str, Path]:
    """Return the sources of the user's loaded modules; the script that was started is none."""
    found = {}
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and name not in ("__main__", "__mp_main__"):
            source = source_of(Path(file).absolute())
            if not is_installed(source):
                found[name] = source
    return found
