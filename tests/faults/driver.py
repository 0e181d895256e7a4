"""Builds the shim, runs commands under it by a fork server, and says what a run did."""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from processes.client import IMPORTED, Server, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE = Path(__file__).parent
_STREAMS = ("stdout", "stderr")
_STOP, _TIMEOUT = 1.0, 120.0
T = TypeVar("T")
R = TypeVar("R")


class Mode(IntEnum):
    """What happens at the chosen call; the numbers of shim.c."""

    NONE = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    KILL_HALFWAY = 3
    NO_SPACE = 4
    BROKEN = 5
    SHORT = 6
    FULL = 7
    DEAD = 8
    STOP_BEFORE = 9

    @property
    def is_kill(self) -> bool:
        return self in {Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.KILL_HALFWAY}

    @property
    def is_error(self) -> bool:
        return self in {Mode.NO_SPACE, Mode.BROKEN, Mode.FULL, Mode.DEAD}


@dataclass(frozen=True, slots=True)
class Call:
    """One line of the shim's log."""

    hit: bool
    number: int
    name: str
    size: int
    path: str

    @property
    def moves_data(self) -> bool:
        """Whether it can be cut short."""
        names = {"write", "pwrite", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile"}
        return self.name in {*names, "splice"} and self.size > 1

    @property
    def removes(self) -> bool:
        return self.name in {"unlink", "rmdir"}

    @property
    def needs_room(self) -> bool:
        """Whether a full disk stops it, from shim.c; a rename takes the room it has."""
        others = {"chmod", "fchmod", "rename", "renameat", "renameat2"}
        return not self.removes and self.name not in others


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command line; see hooks.set_up and run_all for what the options mean."""

    argv: tuple[str, ...]
    told: Path
    watch: Path | None = None
    call: int = 0
    mode: Mode = Mode.NONE
    options: dict[str, Any] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        self.told.mkdir(parents=True, exist_ok=True)
        watched = {"watch": str(self.watch), "call": self.call, "mode": int(self.mode)}
        watched["log"] = str(self.told / "calls")
        return {
            "argv": ["lora-export", *self.argv],
            "cwd": str(Path.cwd()),
            "environment": environment(**settings()),
            "path": str(HERE.parent),
            "hook": "faults.hooks:set_up",
            **self.options,
            **(watched if self.watch else {}),
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: the exit status (negative: the signal), its words, its calls."""

    status: int
    stdout: str
    stderr: str
    calls: tuple[Call, ...]
    seconds: float

    @property
    def hits(self) -> list[Call]:
        return [call for call in self.calls if call.hit]


def build_shim(folder: Path) -> Path:
    """The compiled shim; FileNotFoundError without a C compiler, CalledProcessError if it fails."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise FileNotFoundError("cc")
    library = folder / "shim.so"
    flags = ["-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    part = folder / f"shim.{os.getpid()}.so"
    command = [compiler, *flags, "-o", str(part), str(HERE / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return part.rename(library)


def settings(shim: Path | None = None) -> dict[str, str]:
    """Environment variables of a quiet process; with the shim, its calls can be broken."""
    quiet = {"PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**quiet, **({"LD_PRELOAD": str(shim)} if shim else {})}


class _Child:
    """A run that has been started."""

    def __init__(self, server: Server, run: Run, started: float) -> None:
        self.run, self.started, self.seconds = run, started, 0.0
        self.kill_at = started + run.options.get("kill", _TIMEOUT)
        self.pid: int | None = None
        self.status: int | None = None
        self.is_stopped = False
        self._rest = b""
        request = run.request()
        with ExitStack() as files:
            stdin = files.enter_context(Path(os.devnull).open("rb"))
            streams = [files.enter_context((run.told / n).open("wb")) for n in _STREAMS]
            self.connection = server.ask(request, [file.fileno() for file in (stdin, *streams)])

    def fileno(self) -> int:
        return self.connection.fileno()

    def read(self) -> None:
        """Take in what the server says of it."""
        data = self.connection.recv(1 << 12)
        if not data:
            raise RuntimeError("the fork server ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for answer in map(json.loads, lines):
            self.pid = answer.get("pid", self.pid)
            self.is_stopped = self.is_stopped or "stopped" in answer
            if "status" in answer:
                self.status, self.seconds = answer["status"], time.monotonic() - self.started

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(self.pid, number)

    def outcome(self) -> Outcome:
        self.connection.close()
        told = [(self.run.told / n).read_text(errors="replace") for n in _STREAMS]
        return Outcome(self.status, *told, read_calls(self.run.told / "calls"), self.seconds)


def run_all(server: Server, runs: Sequence[Run]) -> list[Outcome]:
    """Run all at once.

    A run that stops itself is continued when the others have ended or stopped, or after a second.
    One with the option `kill` is killed after as many seconds.
    """
    started = time.monotonic()
    children = [_Child(server, run, started) for run in runs]
    running = list(children)
    while running:
        stopped = [child for child in running if child.is_stopped]
        now = time.monotonic()
        if stopped and (len(stopped) == len(running) or now >= started + _STOP):
            for child in stopped:
                child.is_stopped = False
                child.signal(signal.SIGCONT)
            continue
        late = [child for child in running if child.pid and child.kill_at <= now]
        for child in late:
            child.kill_at = math.inf
            child.signal(signal.SIGKILL)
        alarms = [child.kill_at for child in running if child.pid]
        alarms += [started + _STOP] if stopped else []
        pause = min(alarms, default=math.inf) - now
        readable, _, _ = select.select(
            running, [], [], None if pause == math.inf else max(pause, 0)
        )
        for child in readable:
            child.read()
        running = [child for child in running if child.status is None]
    return [child.outcome() for child in children]


def read_calls(log: Path) -> tuple[Call, ...]:
    if not log.exists():
        return ()
    lines = [line.split("\t", 4) for line in log.read_text().splitlines()]
    return tuple(
        Call(mark == "!", int(number), name, int(size), path)
        for mark, number, name, size, path in lines
    )


class Pool:
    """The fork server with the shim, and threads that keep all processors busy."""

    def __init__(self, folder: Path, shim: Path, size: int) -> None:
        self._server = Server.join(folder, IMPORTED, "fork-server-with-shim", **settings(shim))
        self._size = size
        self.threads = self._server.threads

    def run(self, *runs: Run) -> list[Outcome]:
        """Run all at once; see `run_all`."""
        return run_all(self._server, runs)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`work` for each item, some at a time; the first exception is raised."""
        stop = threading.Event()

        def one(item: T) -> R:
            if stop.is_set():
                raise RuntimeError("another item has failed")
            try:
                return work(item)
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self._size) as threads:
            return list(threads.map(one, items))

    def close(self) -> None:
        self._server.close()
