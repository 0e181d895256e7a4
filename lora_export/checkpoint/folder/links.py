"""Keeps symbolic links of a model's folder inside the folder.

A folder from a stranger may hold a link to a private file of the user. The file would be copied
into the result as a side file, and be published with it. A snapshot in the Hugging Face cache
consists of links into the blobs of the same repository, and is read as it is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lora_export.checkpoint.folder.hf_cache import repository_folder
from lora_export.errors import InputError
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BLOBS = "blobs"


def refuse_leaving(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse paths that lead out of `folder` by a link, or by `..` in a name.

    folder: what the user has named; it may be a link itself.

    Raises:
        InputError: some lead out; each is named with the place that it leads to.
    """
    if problems := leaving(folder, paths):
        raise InputError.of(problems)


def leaving(folder: Path, paths: Iterable[Path]) -> list[Problem]:
    """Return a problem for every path that leads out of `folder`; see refuse_leaving."""
    real = folder.resolve()
    repository = repository_folder(real)
    inside = [real, *([repository / _BLOBS] if repository else [])]
    problems = []
    for path in paths:
        if path.parent == folder and not path.is_symlink():
            continue  # the usual case, without a system call for every folder above
        target = os.path.realpath(path)
        if not any(target.startswith(f"{place}{os.sep}") for place in inside):
            message = f"a link that leads out of the folder, to {target}"
            hint = "put the file itself into the folder, or accept such links with --follow-links"
            problems.append(Problem(message, str(path), hint, cause="input/link"))
    return problems
