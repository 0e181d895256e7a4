"""What the scripts that generate pages share: write the page, or with --check only compare."""

from __future__ import annotations

import argparse
import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def head(script: Path, title: str) -> str:
    """Return the first lines of a page that `script` writes: a warning and the title."""
    return f"<!-- Written by `{_remake(script)}`; edits are lost. -->\n\n# {title}\n\n"


def write_or_check(script: Path, page: Path, text: Callable[[], str]) -> int:
    """Write `page`, or with --check report whether it is up to date; return the exit status."""
    parser = argparse.ArgumentParser(description=f"Write docs/{page.name}.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    if not parser.parse_args().check:
        page.write_text(text(), encoding="utf-8")
        return 0
    wanted = text()
    found = page.read_text(encoding="utf-8") if page.exists() else ""
    if found == wanted:
        print(f"{page.name} is up to date")
        return 0
    lines = difflib.unified_diff(found.splitlines(), wanted.splitlines(), "is", "should be", n=1)
    print(*lines, sep="\n", end=f"\n{page.name} is out of date; run: {_remake(script)}\n")
    return 1


def _remake(script: Path) -> str:
    return f"python docs/{script.name}"
