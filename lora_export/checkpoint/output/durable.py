"""Brings a staged output to the disk before it is renamed.

A rename may reach the disk before the bytes do. After a loss of power the output would then have
its name and not its content.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from lora_export.errors import LoraExportError


def settle(folder: Path) -> None:
    """Give everything below a staging the usual rights and sync it to the disk.

    Raises:
        LoraExportError: a staged file is a link, or has a second name.
        OSError: the system refuses.
    """
    # mkdir made the staging less the umask; its rights show what the user gives new files.
    rights = stat.S_IMODE(folder.stat().st_mode) & 0o777
    # From the leaves up: a folder is synced after the files whose names it holds.
    for place, _folders, names in os.walk(folder, topdown=False):
        for name in names:
            _settle_file(Path(place, name), rights & 0o666)
        if Path(place) != folder:
            Path(place).chmod(rights)
        sync_folder(Path(place))


def _settle_file(path: Path, rights: int) -> None:
    status = path.lstat()
    # A link, or a file with a second name, could be changed from elsewhere after it was proven.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise LoraExportError("a staged file is a link or no regular file", where=str(path))
    path.chmod(rights)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; a rename is only durable after that.

    Raises:
        OSError: the system refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)
