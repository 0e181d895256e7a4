"""Whether code is of an installed package, of the package under test, or of a test."""

from __future__ import annotations

import functools
import site
import sysconfig
from pathlib import Path
from typing import Any
from unittest.mock import NonCallableMock

from whole_run import small_networks

OURS = "lora_export"


@functools.cache
def _roots() -> tuple[str, ...]:
    places = [*site.getsitepackages(), site.getusersitepackages()]
    places += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    import torch

    places += [str(Path(module.__file__).parents[1]) for module in (torch,)]
    import lora_export

    places.append(str(Path(lora_export.__file__).parent))
    folders = [f"{Path(place).resolve()}/" for place in places]
    return (*folders, str(Path(small_networks.__file__).resolve()))  # which watches, no more


@functools.cache
def is_library(file: str) -> bool:
    """Whether a file belongs to Python, to an installed package, or to the package under test."""
    if file.startswith("<frozen"):
        return True
    return str(Path(file).resolve()).startswith(_roots())


def is_ours(name: str) -> bool:
    """Whether a module is of the package under test."""
    return name == OURS or name.startswith(f"{OURS}.")


def is_patch(value: Any) -> bool:
    """Whether what a library holds in a module or class was put there by a test.

    Libraries hold no partials and no mocks there; a function tells by the file of its code.
    """
    inner = getattr(value, "__func__", getattr(value, "fget", value))
    if isinstance(inner, functools.partial | NonCallableMock):
        return True
    code = getattr(inner, "__code__", None)
    file = getattr(code, "co_filename", "<generated>")
    return not file.startswith("<") and not is_library(file)
