"""The step that makes a finished output visible: a rename that is all or nothing.

Uses Linux's renameat2(2) through ctypes, because Python has no call that refuses to replace a file
or exchanges two. Without renameat2, link(2) and rename(2) come as close as POSIX can.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
"""How a kernel or a file system without these flags answers."""


@cache
def _system_call() -> Callable[..., int] | None:
    found = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if found is None:
        return None
    found.argtypes = [
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
    ]  # fmt: skip
    return found  # type: ignore[no-any-return]


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Rename by renameat2; return False when the system or file system lacks it.

    Raises:
        OSError: the rename was refused for another reason.
    """
    call = _system_call()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(target))


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that is free.

    Without renameat2 a file gets its new name by link(2), which refuses a taken name as well. For a
    folder the name is looked up first; another process may take it before the rename.

    Raises:
        FileExistsError: the name is taken.
        OSError: the system refuses.
    """
    if _renameat2(source, target, _NOREPLACE):
        return
    if source.is_dir() or not _link(source, target):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _link(source: Path, target: Path) -> bool:
    """Move a file by link and unlink; return False on a file system without links, such as FAT."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in {errno.EPERM, *_UNSUPPORTED}:
            return False
        raise
    source.unlink()
    return True


def exchange(source: Path, target: Path) -> None:
    """Exchange `source` and the existing `target`.

    Without renameat2 two renames are needed. A kill between them leaves the target absent and its
    old content beside it.

    Raises:
        OSError: the system refuses; `target` is as before.
    """
    if _renameat2(source, target, _EXCHANGE):
        return
    aside = source.with_name(f"{source.name}.old")
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.rename(source)
