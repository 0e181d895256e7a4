"""Names, writes and reads folders of the user's caches that no other user can have written.

What lies in a cache is believed without looking at the model again. That is right only for what the
user has put there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.checkpoint.output.interrupts import held_back
from lora_export.checkpoint.reading import pread_exact

if TYPE_CHECKING:
    from collections.abc import Iterator


class NotPrivateError(OSError):
    """A folder or file is not the user's own, or others may write it."""


def cache_folder(variable: str, name: str) -> Path | None:
    """Return the folder that an environment variable names, else lora-export/`name` of the caches.

    None for a user without a home.
    """
    if named := os.environ.get(variable):
        return Path(named)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with suppress(RuntimeError):  # a user without a home
        return caches.expanduser() / "lora-export" / name
    return None


def write_private(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; other runs may read its folder meanwhile.

    Raises:
        OSError: the folder takes no file.
    """
    with held_back():  # a signal just after the file is made would leave it
        handle, part = tempfile.mkstemp(suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(part).replace(path)
        finally:
            Path(part).unlink(missing_ok=True)


@contextmanager
def private_folder(folder: Path) -> Iterator[int]:
    """Open a folder of the user's own, which no one else may write; yield its descriptor.

    Raises:
        NotPrivateError: it is another user's, or others may write there.
        OSError: it cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _refuse_others(os.fstat(descriptor), str(folder))
        yield descriptor
    finally:
        os.close(descriptor)


def read_private(folder: Path, name: str, most: int) -> bytes:
    """Read a file of a private folder; opening never waits, as it would for a pipe.

    Args:
        folder: see private_folder.
        name: of the file in it.
        most: bytes that the file may have.

    Raises:
        NotPrivateError: the file is no regular file of the user's own, a link, or has more bytes;
            or the folder is not private.
        OSError: it cannot be read.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with private_folder(folder) as place:
        descriptor = os.open(name, flags, dir_fd=place)
    try:
        status = os.fstat(descriptor)
        _refuse_others(status, name)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise NotPrivateError(f"{name} is no regular file of at most {most} bytes")
        content = pread_exact(descriptor, most, 0)
        with suppress(OSError):  # a read-only disk
            os.utime(descriptor)  # entries are removed in the order of their last use
        return content
    finally:
        os.close(descriptor)


def _refuse_others(status: os.stat_result, name: str) -> None:
    """Refuse what another user owns or may write."""
    if status.st_uid != os.geteuid():
        raise NotPrivateError(f"{name} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotPrivateError(f"others may write {name}")
