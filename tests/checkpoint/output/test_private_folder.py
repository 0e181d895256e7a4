"""Only what the user alone can have written is read."""

from __future__ import annotations

import errno
import os

import pytest

from lora_export.checkpoint.output.private_folder import (
    NotPrivateError,
    private_folder,
    read_private,
)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "cache"
    made.mkdir(mode=0o700)
    (made / "entry").write_bytes(b"content")
    return made


def test_a_file_of_ones_own_is_read(folder):
    os.utime(folder / "entry", (1, 1))
    assert read_private(folder, "entry", 7) == b"content"
    assert (folder / "entry").stat().st_mtime > 1  # the last use decides what is removed


def test_a_file_on_a_read_only_disk_is_read(folder, monkeypatch):
    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    assert read_private(folder, "entry", 7) == b"content"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_what_others_may_write_is_not_read(folder, mode):
    (folder / "entry").chmod(mode)
    with pytest.raises(NotPrivateError):
        read_private(folder, "entry", 7)
    (folder / "entry").chmod(0o600)
    folder.chmod(mode)
    with pytest.raises(NotPrivateError):
        read_private(folder, "entry", 7)
    folder.chmod(0o700)


def test_what_is_another_users_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(NotPrivateError, match="another user"), private_folder(folder):
        pass


def test_longer_files_links_and_pipes_are_not_read(folder):
    (folder / "link").symlink_to("entry")
    os.mkfifo(folder / "pipe")
    (folder / "inner").mkdir()
    with pytest.raises(NotPrivateError, match="at most 6"):
        read_private(folder, "entry", 6)
    for name in ("link", "pipe", "inner", "gone"):
        with pytest.raises(OSError, match=f"{name}|regular"):
            read_private(folder, name, 100)
