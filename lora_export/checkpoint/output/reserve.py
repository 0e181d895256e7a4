"""Room for bytes that are still to be computed, taken from the file system beforehand."""

from __future__ import annotations

import ctypes
import errno
import os

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Let the file system find `length` bytes at `offset`, where it can do so without writing.

    By Linux' fallocate(2): os.posix_fallocate, where the file system cannot, writes a byte to every
    block, which takes hours on a network.

    Every other refusal is left to the write that follows, which needs no reservation.

    Raises:
        OSError: there is not so much room.
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
