from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from staged_outputs import listing, put_file, put_folder

from lora_export.checkpoint.folder.side_files import manifest_beside
from lora_export.checkpoint.output import rename
from lora_export.checkpoint.output.publish import staging
from lora_export.errors import LoraExportError, OutputError, StorageError


@pytest.fixture(params=["renameat2", "portable"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both with the kernel's call and on a system that lacks it."""
    if request.param == "portable":
        monkeypatch.setattr(rename, "_system_call", lambda: None)


FOLDER = {"model/lora_export.json": "new", "model/sub/file": "new"}
FILE = {"model": "new", "model.lora_export.json": "manifest of new"}


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize(("put", "expected"), [(put_folder, FOLDER), (put_file, FILE)])
def test_an_output_appears_whole_and_nothing_else_stays(output, put, expected):
    put(output, "new")
    assert listing(output.parent) == expected


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize(("put", "expected"), [(put_folder, FOLDER), (put_file, FILE)])
def test_force_replaces_an_earlier_export_whole(output, put, expected):
    put(output, "old")
    if output.is_dir():
        (output / "more").write_text("of the old one")
    put(output, "new", force=True)
    assert listing(output.parent) == expected


def test_force_where_nothing_is_yet(output):
    with staging(output, force=True, inputs=(), kind="file") as staged:
        staged.path.write_text("new")
        staged.publish()
    assert listing(output.parent) == {"model": "new"}


def test_a_relative_output_stays_where_it_was_meant(output, monkeypatch, tmp_path):
    monkeypatch.chdir(output.parent)
    with staging(Path("model"), force=False, inputs=(), kind="file") as staged:
        monkeypatch.chdir(tmp_path)
        staged.path.write_text("new")
        staged.publish()
    assert output.read_text() == "new"


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, None])
def test_what_is_not_published_leaves_no_trace(output, kind, error):
    def attempt() -> None:
        with staging(output, force=False, inputs=(), kind=kind) as staged:
            (staged.folder / "half").write_text("x")
            if error is not None:
                raise error

    if error is None:
        attempt()
    else:
        with pytest.raises(error):
            attempt()
    assert list(output.parent.iterdir()) == []


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("put", [put_folder, put_file])
def test_a_target_that_appears_meanwhile_wins(output, put, monkeypatch):
    def appear(path: Path) -> None:
        if path.parent == output.parent:
            output.write_text("theirs")

    settle = sys.modules["lora_export.checkpoint.output.publish"].settle
    monkeypatch.setattr(
        "lora_export.checkpoint.output.publish.settle", lambda path: (settle(path), appear(path))
    )
    with pytest.raises(OutputError, match="model has appeared meanwhile") as caught:
        put(output, "new")
    assert caught.value.status == 6
    assert listing(output.parent) == {"model": "theirs"}


def test_a_failed_second_step_takes_the_first_one_back(output, monkeypatch):
    put_file(output, "old")
    exchange = rename.exchange

    def broken(source: Path, target: Path) -> None:
        if target == output and source.read_text() == "new":
            raise OSError(5, "Input/output error")
        exchange(source, target)

    monkeypatch.setattr("lora_export.checkpoint.output.publish.exchange", broken)
    with pytest.raises(StorageError, match="cannot publish: Input/output error"):
        put_file(output, "new", force=True)
    assert listing(output.parent) == {
        "model": "old", "model.lora_export.json": "manifest of old",
    }  # fmt: skip


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_rights_are_those_of_the_umask(output, mask):
    before = os.umask(mask)
    try:
        with staging(output, force=False, inputs=(), kind="folder") as staged:
            (staged.path / "sub").mkdir(mode=0o700)
            (staged.path / "sub" / "file").write_text("x")
            (staged.path / "sub" / "file").chmod(0o600)
            staged.publish()
        with staging(output.with_name("file"), force=False, inputs=(), kind="file") as staged:
            staged.path.write_text("x")
            staged.publish()
    finally:
        os.umask(before)
    for path in (output, output / "sub"):
        assert path.stat().st_mode & 0o777 == 0o777 & ~mask
    for path in (output / "sub" / "file", output.with_name("file")):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_links_and_what_was_not_announced_are_not_published(output):
    def publish_link(kind: str) -> None:
        with staging(output, force=False, inputs=(), kind=kind) as staged:
            staged.path.joinpath("x").symlink_to("/etc/passwd")
            staged.publish()

    def publish_hard_link() -> None:
        with staging(output, force=False, inputs=(), kind="file") as staged:
            (output.parent / "other").write_text("x")
            staged.path.hardlink_to(output.parent / "other")
            staged.publish()

    def publish_other_file() -> None:
        with staging(output, force=False, inputs=(), kind="file") as staged:
            (staged.folder / "other").write_text("x")
            staged.publish()

    for attempt in (lambda: publish_link("folder"), publish_hard_link, publish_other_file):
        with pytest.raises(LoraExportError):
            attempt()
        assert not output.exists()
    with (
        staging(output, force=False, inputs=(), kind="file") as staged,
        pytest.raises(LoraExportError, match="not announced"),
    ):
        staged.beside("x")


def test_the_staging_cannot_be_made(output, monkeypatch):
    monkeypatch.setattr(
        Path, "mkdir", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with (
        pytest.raises(StorageError, match="cannot write beside it: No space left"),
        staging(output, force=False, inputs=(), kind="folder"),
    ):
        pass


def test_it_works_outside_the_main_thread_and_handlers_come_back(output):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=put_folder, args=(output, "new"))
    thread.start()
    thread.join()
    assert listing(output.parent) == FOLDER
    put_folder(output, "new", force=True)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_what_cannot_be_taken_back_is_told(output, monkeypatch):
    def refused(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lora_export.checkpoint.output.publish.sync_folder", refused)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(StorageError, match="could not be taken back") as caught:
        put_file_unsynced(output)
    assert caught.value.problems[0].cause == "storage/left"
    assert (output.parent / "model").read_text() == "new"


def put_file_unsynced(output: Path) -> None:
    name = manifest_beside(output)
    with staging(output, force=False, inputs=(), kind="file", beside=[name]) as staged:
        staged.path.write_text("new")
        staged.beside(name).write_text("manifest")
        staged._put_in_place()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_refusal_of_the_system_while_writing_is_a_storage_error(output, kind):
    def write() -> None:
        with staging(output, force=False, inputs=(), kind=kind):
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="cannot write: No space left"):
        write()


def test_the_lock_of_the_folder_is_waited_for(output, monkeypatch):
    monkeypatch.setattr("lora_export.checkpoint.output.locks.PATIENCE", 0)
    descriptor = os.open(output.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="another run"):
        put_file(output, "new")
    os.close(descriptor)
    put_file(output, "new")
    assert listing(output.parent) == FILE


def test_an_empty_folder_is_replaced_and_a_filled_one_is_not(output):
    output.mkdir()
    with staging(output, force=False, inputs=(), kind="folder") as staged:
        (staged.path / "model.safetensors").write_text("new")
        staged.publish()
    assert (output / "model.safetensors").read_text() == "new"
    assert [item.name for item in output.parent.iterdir()] == [output.name]
    with pytest.raises(OutputError):
        put_folder(output, "other")
