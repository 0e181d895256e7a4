"""Starts a fork server, or joins the one that another test worker has started."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from processes.stand_in import SOCKET, answers, ask

import lora_export

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
PROGRAMS = ("lora-export", "python")
#: What the program itself imports; ONNX Runtime is left out, which starts a thread.
IMPORTED = (
    "torch",
    "numpy",
    "safetensors.torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "torch.onnx._internal.exporter",
)


#: Memory in large pages, for Python's objects too: a fork copies the page table of 300 MB, which
#: takes 6 ms instead of 20. Where the system has no large pages, nothing changes.
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONMALLOC": "malloc"}


def environment(**more: str) -> dict[str, str]:
    """Return variables for the package under test on one thread: a fork copies no other."""
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
    #: None where another process has started it.
    _process: Any = field(default=None, repr=False)

    @classmethod
    def join(
        cls, folder: Path, modules: Sequence[str], name: str = "fork-server", **settings: str
    ) -> Server:
        """Return the server `name` of `folder`, which is started unless it runs.

        It imports `modules`, in an environment with `settings`.
        """
        place = str(folder / name)
        with _locked(folder):
            with suppress(OSError, EOFError):
                return cls._at(place)
            process = subprocess.Popen(
                [sys.executable, str(HERE / "server.py"), place, *modules],
                env=environment(**_LARGE_PAGES, **settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            if not process.stdout.readline():
                raise RuntimeError(f"the fork server does not start: {process.wait()}")
            return replace(cls._at(place), _process=process)

    @classmethod
    def _at(cls, place: str) -> Server:
        lifeline = ask(place, {"lifeline": True}, [])
        for answer in answers(lifeline):
            return cls(place, answer["threads"], lifeline)
        lifeline.close()
        raise EOFError(place)

    def ask(self, request: dict[str, Any], descriptors: Sequence[int]) -> Any:
        """Return the connection on which the answers come; see server.py."""
        return ask(self.place, request, list(descriptors))

    def close(self) -> None:
        """Let the server end.

        The process that started it waits until all others have closed it too: then its processor
        seconds count among those of its parent.
        """
        self._lifeline.close()
        if self._process:
            self._process.communicate()

    def write_programs(self, folder: Path) -> dict[str, str]:
        """Put `lora-export` and `python` into `folder`; return the variables that a shell needs."""
        text = f"#!{sys.executable} -IS\n{(HERE / 'stand_in.py').read_text(encoding='utf-8')}"
        for name in PROGRAMS:
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
        return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", SOCKET: self.place}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep all other processes out of this block for `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
