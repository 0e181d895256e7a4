"""The cage notices what it is there for: an audit that sees nothing would pass everything."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from hostile.cage import CPU_SECONDS, MEGABYTES, Outcome, run
from hostile.case import Case, try_case

from lora_export.errors import InputError


def spin():
    count = 0
    while count < 200_000_000:
        count += 1


def fill():
    assert len(bytearray(300 << 20)) > 0


def refuse():
    raise InputError("no", where="x")


@pytest.mark.parametrize(
    ("call", "event"),
    [
        (lambda: os.system("true"), "os.system"),  # noqa: S605 - seen, not trusted
        (lambda: subprocess.run(["true"], check=False), "subprocess.Popen"),
        (lambda: socket.socket().close(), "socket."),
        (lambda: eval(compile("1", "/tmp/x.py", "eval")), "compile /tmp/x.py"),  # noqa: S307, S108
        (lambda: Path("/tmp/lora-export-outside").write_text("x"), "written /tmp/"),  # noqa: S108
    ],
)  # fmt: skip
def test_what_no_reader_does_is_noticed(call, event, tmp_path):
    events = run(call, tmp_path).events
    assert any(found.startswith(event) for found in events), events


def test_what_readers_do_is_none_of_it(tmp_path):
    outcome = run(lambda: (tmp_path / "x").write_text(Path(__file__).read_text()), tmp_path)
    assert (outcome.kind, outcome.events) == ("accepted", [])
    assert (tmp_path / "x").is_file()


def test_refusals_and_tracebacks_are_told_apart(tmp_path):
    assert run(refuse, tmp_path).kind == "input"
    assert run(lambda: 1 // 0, tmp_path).kind == "traceback"
    assert run(lambda: os._exit(3), tmp_path).kind == "stopped"


def test_memory_and_time_are_measured(tmp_path):
    assert "MB" in run(fill, tmp_path).over
    assert Outcome("input", cpu=CPU_SECONDS + 1).over
    assert not Outcome("input", cpu=CPU_SECONDS / 2, memory=MEGABYTES / 2).over
    assert run(spin, tmp_path).cpu > 0.5


def test_a_case_fails_for_each_reason(tmp_path):
    def left(folder):
        def call():
            (folder / "left").touch()
            refuse()

        return call

    assert "left left" in try_case(Case("g", "n", left), tmp_path).faults[0]
    accepted = try_case(Case("g", "n", lambda _folder: lambda: None), tmp_path)
    assert "accepted, not input" in accepted.faults[0]
    assert not try_case(Case("g", "n", lambda _folder: refuse), tmp_path).faults
