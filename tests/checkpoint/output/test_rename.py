from __future__ import annotations

import errno
import os

import pytest

from lora_export.checkpoint.output import rename


@pytest.fixture(params=["renameat2", "missing", "ENOSYS", "EINVAL"], autouse=True)
def _system(request, monkeypatch):
    if request.param == "missing":
        monkeypatch.setattr(rename, "_system_call", lambda: None)
    elif request.param != "renameat2":
        code = getattr(errno, request.param)
        monkeypatch.setattr(rename, "_system_call", lambda: lambda *_: -1)
        monkeypatch.setattr(rename.ctypes, "get_errno", lambda: code)


@pytest.fixture(params=["file", "folder"])
def pair(request, tmp_path):
    paths = tmp_path / "source", tmp_path / "target"
    for path in paths:
        if request.param == "folder":
            path.mkdir()
            (path / "content").write_text(path.name)
        else:
            path.write_text(path.name)
    return paths


def content(path):
    return (path / "content" if path.is_dir() else path).read_text()


def test_a_taken_name_is_never_overwritten(pair):
    source, target = pair
    with pytest.raises(FileExistsError):
        rename.rename_new(source, target)
    assert (content(source), content(target)) == ("source", "target")


def test_a_free_name_is_taken(pair, tmp_path):
    rename.rename_new(pair[0], tmp_path / "free")
    assert content(tmp_path / "free") == "source"
    assert not pair[0].exists()


def test_an_exchange_leaves_the_old_one_at_the_source(pair):
    rename.exchange(*pair)
    assert content(pair[1]) == "source"
    assert content(pair[0]) == "target"


def test_a_missing_source_leaves_the_target_as_it_was(pair, tmp_path):
    with pytest.raises(FileNotFoundError):
        rename.exchange(tmp_path / "none", pair[1])
    assert content(pair[1]) == "target"
    with pytest.raises(FileNotFoundError):
        rename.rename_new(tmp_path / "none", tmp_path / "free")


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_text("source")
    rename.rename_new(tmp_path / "source", tmp_path / "free")
    (tmp_path / "source").write_text("second")
    with pytest.raises(FileExistsError):
        rename.rename_new(tmp_path / "source", tmp_path / "free")
    assert content(tmp_path / "free") == "source"
