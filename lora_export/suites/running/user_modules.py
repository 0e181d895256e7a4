"""Keeps the code of one case's --model away from another's.

Two models may each import a sibling named `data`. A command is a process and sees one of them; the
rows of a suite share a process.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.suites.running.opened_files import is_installed

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def modules_of_its_own() -> Iterator[None]:
    """Forget the user's modules that are imported inside the block, and restore sys.path."""
    before, path = set(sys.modules), [*sys.path]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and not is_installed(Path(file).absolute()):
                del sys.modules[name]
