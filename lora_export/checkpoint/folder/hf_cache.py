"""Finds "org/name" in the local Hugging Face cache; never touches the network.

Reproduces where huggingface_hub 1.x looks (constants.HF_HUB_CACHE): HF_HUB_CACHE, HF_HOME/hub,
XDG_CACHE_HOME, ~/.cache.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""The name of a repository of models."""

_REVISION = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """Return the folder that holds models--org--name, as the environment names it."""
    direct = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if direct:
        return Path(direct).expanduser()
    home = os.environ.get("HF_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home or f"{base}/huggingface").expanduser() / "hub"


def is_repository_name(path: Path) -> bool:
    """Return whether a path could also be the name of a repository, `org/name`."""
    return REPOSITORY.fullmatch(str(path)) is not None and ".." not in str(path)


def cached_snapshot(path: Path) -> Path | None:
    """Return the cached files of the repository that `path` names, at its main revision.

    None when `path` is no such name, or nothing is cached.
    """
    if not is_repository_name(path):
        return None
    repository = cache_folder() / f"models--{str(path).replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    # The content of refs/main becomes a part of a path, so it must be a commit.
    snapshot = repository / "snapshots" / revision
    return snapshot if _REVISION.fullmatch(revision) and snapshot.is_dir() else None


def commit_of(path: Path) -> str:
    """Return the commit of the cached snapshot in which `path` lies; "" when it lies in none."""
    return _snapshot(path)[1]


def commit_of_revision(path: Path, revision: str) -> str:
    """Return the commit that a revision of the repository of `path` means.

    "" when the cache does not know the branch or tag. The revision itself when it is a commit
    already, or when `path` does not lie in the cache.
    """
    folder, _ = _snapshot(path)
    if folder is None or _REVISION.fullmatch(revision):
        return revision
    # The revision comes from a file of the adapter and must not lead out of refs/.
    if revision.startswith("/") or ".." in revision.split("/"):
        return ""
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def repository_folder(path: Path) -> Path | None:
    """Return the folder of the repository in whose cached snapshot `path` lies; None for none."""
    return _snapshot(path)[0]


def _snapshot(path: Path) -> tuple[Path | None, str]:
    """Return the repository's folder in the cache and the snapshot's commit, or (None, "")."""
    for place in (path, *path.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            return place.parent.parent, place.name
    return None, ""


def repository_of(path: Path) -> str:
    """Return `org/name` of the repository in whose cached snapshot `path` lies; else ""."""
    for part, following in zip(path.parts, path.parts[1:], strict=False):
        if part.startswith("models--") and following == "snapshots":
            name = part.removeprefix("models--").replace("--", "/", 1)
            return name if REPOSITORY.fullmatch(name) else ""
    return ""
