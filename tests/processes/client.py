"""Starts a fork server, or joins the one that another test worker has started."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from processes.stand_in import SOCKET, answers, ask

import lora_export

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
PROGRAMS = ("lora-export", "python")


def environment(**more: str) -> dict[str, str]:
    """For a process that runs the package under test, on one thread: a fork copies no other."""
    package = str(Path(lora_export.__file__).parents[1])
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, "PYTHONPATH": package, **one, **more}


@dataclass(frozen=True, slots=True)
class Server:
    """A fork server that other processes may use too; it ends when all have closed it."""

    place: str
    #: Of the server when it was ready; a fork is a clean copy of one.
    threads: int
    _lifeline: Any = field(repr=False)

    @classmethod
    def join(
        cls, folder: Path, modules: Sequence[str], name: str = "fork-server", **settings: str
    ) -> Server:
        """The server `name` of `folder`, which is started unless it runs.

        It imports `modules`, in an environment with `settings`.
        """
        place = str(folder / name)
        with _locked(folder):
            try:
                return cls._at(place)
            except (OSError, EOFError):
                command = [sys.executable, str(HERE / "server.py"), place, *modules]
                nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
                subprocess.run(command, env=environment(**settings), check=True, **nothing)
                return cls._at(place)

    @classmethod
    def _at(cls, place: str) -> Server:
        lifeline = ask(place, {"lifeline": True}, [])
        for answer in answers(lifeline):
            return cls(place, answer["threads"], lifeline)
        lifeline.close()
        raise EOFError(place)

    def ask(self, request: dict[str, Any], descriptors: Sequence[int]) -> Any:
        """The connection on which the answers come; see server.py."""
        return ask(self.place, request, list(descriptors))

    def close(self) -> None:
        """Let the server end when no other process uses it."""
        self._lifeline.close()

    def write_programs(self, folder: Path) -> dict[str, str]:
        """Put `lora-export` and `python` into `folder`; return the variables that a shell needs."""
        text = f"#!{sys.executable} -IS\n{(HERE / 'stand_in.py').read_text(encoding='utf-8')}"
        for name in PROGRAMS:
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
        return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", SOCKET: self.place}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other process is in this block for `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
