"""Captures are kept where no one else may write, and two runs may share an entry."""

from __future__ import annotations

import os

import pytest

from lora_export.onnx_export.capture.captures import Captures

KEY = "ab" * 32


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "cache"
    made.mkdir(mode=0o700)
    (made / "entry").write_bytes(b"content")
    return made


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
