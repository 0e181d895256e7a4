"""Only what the user alone can have written is read, and two runs may share an entry."""

from __future__ import annotations

import os

import pytest

from lora_export.onnx_export.capture.captures import Captures
from lora_export.onnx_export.capture.private_folder import (
    NotPrivateError,
    private_folder,
    read_private,
)

KEY = "ab" * 32


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


def test_a_folder_that_others_may_write_keeps_nothing(zoo, folder):
    graph = zoo.captured("net").graph()
    folder.chmod(0o777)
    assert "others may write" in Captures(folder).keep(KEY, graph)
    folder.chmod(0o700)
    assert [path.name for path in folder.iterdir()] == ["entry"]


def test_two_processes_on_one_entry_see_it_whole(zoo, folder):
    """One writes the entry again and again; the other reads it, and finds it right every time."""
    graph = zoo.captured("net").graph()
    cache = Captures(folder)
    assert cache.keep(KEY, graph) == ""
    writer = os.fork()
    if not writer:
        kept = [cache.keep(KEY, graph) for _ in range(60)]
        os._exit(1 if any(kept) else 0)
    reads, ended = 0, (0, 0)
    while not ended[0]:
        assert cache.take(KEY) == graph
        reads += 1
        ended = os.waitpid(writer, os.WNOHANG)
    assert (reads > 0, ended[1]) == (True, 0)
    assert cache.take(KEY) == graph
    assert not list(folder.glob("*.part"))
