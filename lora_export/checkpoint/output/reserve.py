"""Reserves room on the disk for bytes that are still to be computed."""

from __future__ import annotations

import ctypes
import errno
import os

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""How the system answers when there is not enough room."""


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Reserve `length` bytes at `offset` of a file, if the file system can do so without writing.

    Uses Linux's fallocate(2). os.posix_fallocate writes a byte to every block where the file system
    lacks reservations, which takes hours on a network. Any other refusal is ignored: the write that
    follows needs no reservation.

    Raises:
        OSError: there is not enough room.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "fallocate64") or length == 0:
        return
    size = ctypes.c_int64
    if library.fallocate64(descriptor, 0, size(offset), size(length)) == 0:
        return
    code = ctypes.get_errno()
    if code in _NO_ROOM:
        raise OSError(code, os.strerror(code))
