"""Publishing seen from outside: other writers, readers, signals and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from staged_outputs import listing, put_file, put_folder

from lora_export.checkpoint.output.publish import staging

if TYPE_CHECKING:
    from pathlib import Path


def stale_name(output: Path, pid: int, random: str = "0123456789abcdef") -> Path:
    return output.with_name(f".{output.name}.lora-export-{pid}-{random}")


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_stagings_of_dead_processes_are_removed_and_no_others(output):
    dead = dead_pid()
    stale = stale_name(output, dead)
    kept = [
        stale_name(output, os.getpid()),
        stale_name(output.with_name("other"), dead),
        stale_name(output, dead, "text"),
    ]
    for folder in (stale, *kept):
        folder.mkdir()
        (folder / "file").touch()
    put_folder(output, "new")
    assert not stale.exists()
    assert all(folder.exists() for folder in kept)


def test_a_staging_in_use_is_kept_though_its_number_is_dead(output):
    folder = stale_name(output, dead_pid())
    with staging(output, force=False, inputs=(), kind="file") as staged:
        staged.folder.rename(folder)
        put_folder(output, "new")
        assert folder.exists()


PATIENCE = 600
"""Seconds after which what hangs ends the test; on a busy machine a process may start slowly."""

RACE = """
import sys, time
from pathlib import Path
from lora_export.checkpoint.output.publish import staging
from lora_export.checkpoint.folder.side_files import manifest_beside
from lora_export.errors import OutputError
output, kind, gate = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
beside = [manifest_beside(output)] if kind == "file" else []
try:
    with staging(output, force=False, inputs=(), kind=kind, beside=beside) as staged:
        name = sys.argv[4]
        (staged.path if kind == "file" else staged.path / "who").write_text(name)
        for other in beside:
            staged.beside(other).write_text(name)
        gate.with_name(f"ready-{name}").touch()
        while not gate.exists():
            time.sleep(0.001)
        staged.publish()
except OutputError as error:
    sys.exit(error.status)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_several_writers_exactly_one_wins(tmp_path, output, start, kind):
    gate = tmp_path / "gate"
    writers = [start(RACE, output, kind, gate, name) for name in "abcd"]
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 4)
    gate.touch()
    ends = {name: writer.wait(PATIENCE) for name, writer in zip("abcd", writers, strict=True)}
    assert sorted(ends.values()) == [0, 6, 6, 6]
    (winner,) = (name for name, status in ends.items() if status == 0)
    assert set(listing(output.parent).values()) == {winner}
    for writer in writers:
        writer.communicate()


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_reader_sees_the_old_or_the_new_at_every_instant(output, kind):
    put = put_file if kind == "file" else put_folder
    seen = output if kind == "file" else output / "sub" / "file"
    put(output, "x" * 1000)
    stop, faults = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            try:
                text = seen.read_text()
            except OSError as error:
                # A folder that is exchanged between two steps of one path look-up.
                if not output.exists():
                    faults.append(repr(error))
                continue
            if len(text) != 1000 or len(set(text)) != 1:
                faults.append(text[:20])

    watcher = threading.Thread(target=watch)
    watcher.start()
    for letter in "abcdefghijklmnopqrst":
        put(output, letter * 1000, force=True)
    stop.set()
    watcher.join()
    assert faults == []
    assert seen.read_text() == "t" * 1000


KILLED = """
import sys, time, signal
from pathlib import Path
from lora_export.checkpoint.output.publish import staging
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with staging(Path(sys.argv[1]), force=False, inputs=(), kind="folder") as staged:
    (staged.path / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60 if len(sys.argv) == 2 else 0.3)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_removes_the_staging(output, start, number, status):
    process = start(KILLED, output)
    assert process.stdout.readline() == "ready\n"
    assert len(list(output.parent.iterdir())) == 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert list(output.parent.iterdir()) == []


def test_a_signal_that_was_ignored_stays_ignored(output, start):
    process = start(KILLED, output, "ignore")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_kill_leaves_a_staging_that_the_next_run_removes(output, start):
    process = start(KILLED, output)
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=30)
    assert len(list(output.parent.iterdir())) == 1
    put_folder(output, "new")
    assert set(listing(output.parent).values()) == {"new"}
