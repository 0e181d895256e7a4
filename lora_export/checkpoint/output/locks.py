"""Keeps runs apart that write the same output, and removes what a killed run left behind.

Locks are flock(2): the system releases them when a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lora_export.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60
"""Seconds to wait for another run that is publishing in the same folder."""

_STAGING = ".{name}.lora-export-{pid}-{random}"
_STAGING_TAIL = r"\.lora-export-(\d+)-[0-9a-f]{16}(\.old)?"


def staging_folder(output: Path) -> Path:
    """Return a new hidden name beside `output`, which `remove_stale` recognises later.

    It lies in the same folder, because a rename cannot cross file systems.
    """
    name = _STAGING.format(name=output.name, pid=os.getpid(), random=secrets.token_hex(8))
    return output.with_name(name)


@contextmanager
def one_writer(output: Path) -> Iterator[None]:
    """Hold the lock of the output's folder, so that no other run publishes there meanwhile.

    The folder is locked and not the output, because files beside the output belong to it. Where a
    folder cannot be locked, runs go on without a lock.

    Raises:
        OutputError: the lock does not become free within PATIENCE.
    """
    descriptor = None
    end = time.monotonic() + PATIENCE
    with suppress(OSError):
        descriptor = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Asked again and again: a blocking flock could not be given up after a time.
        while descriptor is not None and not _try_lock(descriptor):
            if time.monotonic() > end:
                message = f"another run has been publishing there for {PATIENCE} seconds"
                hint = "wait until it has ended, or choose another folder"
                raise OutputError(message, where=str(output), hint=hint, cause="output/in-use")
            time.sleep(0.01)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Return whether no other process holds the lock; True as well where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def lock_staging(folder: Path) -> int | None:
    """Lock a staging as long as this process lives; return the descriptor that holds the lock.

    The process number in the name is not enough: a process in a container, or a later one, may
    have the same. None when another process holds the lock, or the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_stale(output: Path) -> None:
    """Remove stagings of the same output whose process is dead; never one that is in use."""
    pattern = re.compile(re.escape(f".{output.name}") + _STAGING_TAIL)
    with suppress(PermissionError):  # a folder that may be written, but not listed
        for entry in list(output.parent.iterdir()):
            found = pattern.fullmatch(entry.name)
            if found and not _is_alive(int(found[1])):
                _remove_unlocked(entry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):
        lock = lock_staging(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
