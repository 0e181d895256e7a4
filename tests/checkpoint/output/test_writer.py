from __future__ import annotations

import errno
import hashlib
import os

import pytest

from lora_export.checkpoint.output.writer import copy_file, write_bytes
from lora_export.errors import InputError, StorageError


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="cannot create"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_told_with_the_bytes_needed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / "x", bytes(12_345))
    assert "No space left" in str(caught.value)
    assert "12,345 bytes are needed" in str(caught.value)
    assert str(tmp_path / "x") in str(caught.value)


def test_copy_file_copies_bytes_not_rights(tmp_path):
    source = tmp_path / "in"
    source.write_bytes(os.urandom(9_000_000))
    source.chmod(0o400)
    written = copy_file(source, tmp_path / "out", name="sub/out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert (tmp_path / "out").stat().st_mode & 0o200
    assert written.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (written.path, written.size) == ("sub/out", 9_000_000)
    with pytest.raises(InputError, match="no such file"):
        copy_file(tmp_path / "none", tmp_path / "out2")
