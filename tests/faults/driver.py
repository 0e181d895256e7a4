"""Builds the shim, runs servers under it, and says what a run did."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lora_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HERE = Path(__file__).parent
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
    """One run of the command line; see server._answer for what the options mean."""

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
        options = {"argv": list(self.argv), "told": str(self.told), **self.options}
        return {**options, **(watched if self.watch else {})}


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
    command = [compiler, *flags, "-o", str(library), str(HERE / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return library


def environment(shim: Path | None = None) -> dict[str, str]:
    """For a process that runs the package under test, quietly and on one thread."""
    package = str(Path(lora_export.__file__).parents[1])
    settings = {"PYTHONPATH": package, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    settings |= {"OPENBLAS_NUM_THREADS": "1"}
    settings |= {"PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
    if shim:
        settings["LD_PRELOAD"] = str(shim)
    return {**os.environ, **settings}


class Server:
    """A fork server; use from one thread at a time."""

    def __init__(self, shim: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            env=environment(shim),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.threads = self._read()["threads"]

    def run(self, *runs: Run) -> list[Outcome]:
        """Run all at once."""
        line = json.dumps({"runs": [run.request() for run in runs]})
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._read()
        pairs = zip(runs, answer["ends"], strict=True)
        return [_outcome(run, end, answer["seconds"]) for run, end in pairs]

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended: {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def _outcome(run: Run, status: int, seconds: float) -> Outcome:
    files = [run.told / name for name in ("stdout", "stderr")]  # a kill may come before them
    stdout, stderr = (file.read_text(errors="replace") if file.exists() else "" for file in files)
    return Outcome(status, stdout, stderr, read_calls(run.told / "calls"), seconds)


def read_calls(log: Path) -> tuple[Call, ...]:
    if not log.exists():
        return ()
    lines = [line.split("\t", 4) for line in log.read_text().splitlines()]
    return tuple(
        Call(mark == "!", int(number), name, int(size), path)
        for mark, number, name, size, path in lines
    )


class Pool:
    """Some servers, and threads that keep them all busy."""

    def __init__(self, shim: Path, size: int) -> None:
        with ThreadPoolExecutor(size) as starters:
            self._all = list(starters.map(Server, [shim] * size))
        self._idle: queue.SimpleQueue[Server] = queue.SimpleQueue()
        self.threads = max(server.threads for server in self._all)
        for server in self._all:
            self._idle.put(server)

    @contextmanager
    def server(self) -> Iterator[Server]:
        server = self._idle.get()
        try:
            yield server
        finally:
            self._idle.put(server)

    def run(self, *runs: Run) -> list[Outcome]:
        with self.server() as server:
            return server.run(*runs)

    def map(self, work: Callable[[Server, T], R], items: Iterable[T]) -> list[R]:
        """`work` for each item, on as many servers as there are; the first exception is raised."""
        stop = threading.Event()

        def one(item: T) -> R:
            if stop.is_set():
                raise RuntimeError("another item has failed")
            try:
                with self.server() as server:
                    return work(server, item)
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(len(self._all)) as threads:
            return list(threads.map(one, items))

    def close(self) -> None:
        for server in self._all:
            server.close()
