"""What a case needs installed, and where the files of an installed package are."""

from __future__ import annotations

import difflib
from importlib import metadata, util
from pathlib import Path

from lora_export.errors import InputError, UsageError
from lora_export.suites.suite import PACKAGE

EXTRAS = {"hf": ("transformers", "tokenizers")}
"""The extras of lora-export that a command may need, with their packages."""


def missing(extras: tuple[str, ...]) -> list[str]:
    """Return those of `extras` that are not installed.

    extras: extras of lora-export; any other name is that of a package or of a module.
    """
    return [name for name in extras if not all(map(_is_there, EXTRAS.get(name, (name,))))]


def mistyped(name: str) -> str:
    """Return a name, with the extra of lora-export that it may mean."""
    near = difflib.get_close_matches(name, EXTRAS, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def _is_there(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return name.isidentifier() and util.find_spec(name) is not None
    except ValueError:  # no name of a package
        return False
    return True


def located(path: str) -> str:
    """Return a path of a suite as a path of this machine.

    Raises:
        UsageError: a path inside a package names none, or leads out of it.
        InputError: the package is not installed.
    """
    if not path.startswith(PACKAGE):
        return path
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier() or ".." in Path(inner).parts:
        raise UsageError(
            "names no path in a package",
            where=path,
            hint=f"{PACKAGE}NAME/PATH",
            cause="usage/suite",
        )
    spec = util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the package {name} is not installed",
            where=path,
            hint=f"install {name}",
            cause="input/missing-file",
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / inner)
