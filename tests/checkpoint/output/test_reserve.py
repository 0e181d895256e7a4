"""Room is taken where the file system can give it, and asked for in vain elsewhere."""

import ctypes
import errno
import os

import pytest

from lora_export.checkpoint.output import reserve as module
from lora_export.checkpoint.output.reserve import reserve

LENGTH = 300_000


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def refusing(monkeypatch, code):
    class Library:
        def fallocate64(self, *_):
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Library())


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "fallocate64"), reason="no fallocate here")
def test_the_room_is_there_and_what_was_written_stays(file):
    os.pwrite(file, b"old", 10)
    reserve(file, 0, LENGTH)
    found = os.fstat(file)
    assert found.st_size == LENGTH
    assert found.st_blocks * 512 >= LENGTH
    assert os.pread(file, 20, 5) == b"\0" * 5 + b"old" + b"\0" * 12


def test_of_nothing_nothing_is_reserved(file):
    reserve(file, 5, 0)
    assert os.fstat(file).st_size == 0


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.EINTR, errno.EIO, 524])
def test_what_the_write_will_tell_or_get_over_is_left_to_it(code, file, monkeypatch):
    refusing(monkeypatch, code)
    reserve(file, 0, LENGTH)
    assert os.fstat(file).st_size == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told(code, file, monkeypatch):
    refusing(monkeypatch, code)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
        reserve(file, 0, LENGTH)
    assert caught.value.errno == code
