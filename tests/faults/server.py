"""A process that has imported everything and forks a child for each run of the command line.

Started by driver.Server with the shim preloaded. Reads one JSON request a line on stdin and answers
with one JSON line; see `_answer`. The parent stays at one thread, so that a fork is a clean copy.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

_POLL, _STOP, _TIMEOUT = 0.0005, 1.0, 120.0
_MODULES = (
    "torch",
    "numpy",
    "safetensors.torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "torch.onnx",
    "torch.onnx._internal.exporter",
)


def main() -> None:
    """Import, say "ready", answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    _import_everything()
    answers.write(json.dumps({"threads": _threads()}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")


def _import_everything() -> None:
    import torch

    torch.set_num_threads(1)
    package = importlib.import_module("lora_export")
    root = Path(str(package.__file__)).parent
    inside = [
        ".".join(("lora_export", *path.relative_to(root).with_suffix("").parts))
        for path in sorted(root.rglob("*.py"))
        if path.name not in {"__init__.py", "__main__.py"}
    ]
    for name in (*_MODULES, *inside):
        with suppress(ImportError):
            importlib.import_module(name)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run what the request says; the exit status of each run (negative: a signal), the seconds.

    runs: of each a list of arguments (argv), the shim's orders (watch, call, mode, log), a folder
    for stdout and stderr (told), a memo of the captured ONNX graph (graph), how far the head start
    gets (ahead), a limit of the size of files (fsize), a umask, a working directory (cwd), a delay
    before the start, and the seconds after which it is killed (kill). All start together; a run
    that stops itself is continued when the others have ended, or after a second.
    """
    started = time.monotonic()
    running = {_fork(run): run.get("kill", _TIMEOUT) for run in request["runs"]}
    pids = list(running)
    ends: dict[int, int] = {}
    stopped: set[int] = set()
    while running:
        passed = time.monotonic() - started
        for pid, kill in list(running.items()):
            found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                stopped.add(pid)
            elif found:
                ends[pid] = os.waitstatus_to_exitcode(status)
                del running[pid]
            elif passed >= kill:
                os.kill(pid, signal.SIGKILL)
        if stopped and (len(stopped) == len(running) or passed > _STOP):
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            stopped.clear()
        time.sleep(_POLL)
    return {"ends": [ends[pid] for pid in pids], "seconds": time.monotonic() - started}


def _fork(run: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        _set_up(run)
        status = _run(run)
    except BaseException:  # noqa: BLE001 - the child must never go on as a second server
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _set_up(run: dict[str, Any]) -> None:
    told = Path(run["told"])
    for number, name in ((0, ""), (1, "stdout"), (2, "stderr")):
        place = told / name if name else Path(os.devnull)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if "umask" in run:
        os.umask(run["umask"])
    if "fsize" in run:
        resource.setrlimit(resource.RLIMIT_FSIZE, (run["fsize"], run["fsize"]))
    if "cwd" in run:
        os.chdir(run["cwd"])
    _remember_graph(run)
    _start_ahead(run)
    time.sleep(run.get("delay", 0))


def _run(run: dict[str, Any]) -> int:
    from lora_export.cli import main as command_line

    if "watch" in run:
        log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        watch, call = os.fsencode(run["watch"]), ctypes.c_long(run["call"])
        ctypes.CDLL(None).shim_arm(watch, call, run["mode"], log)
    try:
        command_line(run["argv"], prog_name="lora-export")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(10)
    return 0


def _remember_graph(run: dict[str, Any]) -> None:
    """Capture takes seconds and touches no file: it is done once, then read from `graph`."""
    if "graph" not in run:
        return
    import onnx

    from lora_export.onnx_export import export

    memo, capture = Path(run["graph"]), export.capture

    def remembered(*arguments: Any, **options: Any) -> onnx.ModelProto:
        if not memo.exists():
            graph = capture(*arguments, **options)
            part = memo.with_suffix(f".{os.getpid()}")
            part.write_bytes(graph.SerializeToString(deterministic=True))
            part.rename(memo)
        return onnx.ModelProto.FromString(memo.read_bytes())

    export.capture = remembered


def _start_ahead(run: dict[str, Any]) -> None:
    """Let the head start run in its thread, as in a process that has torch still to import.

    torch is away until the thread has ended, and it ends when it has asked `ahead` times whether to
    stop, or when it has done everything. Whoever else imported torch before would fail loudly.
    """
    if "ahead" not in run:
        return
    from lora_export.execution import head_start, stage

    torch, left = sys.modules.pop("torch"), itertools.count(run["ahead"], -1)

    class Held(head_start.HeadStart):
        def __enter__(self) -> Self:
            self._stopped.is_set = lambda: next(left) <= 0  # type: ignore[method-assign]
            super().__enter__()
            self._thread.join()
            sys.modules["torch"] = torch
            return self

    stage.HeadStart = Held  # type: ignore[misc]


if __name__ == "__main__":
    main()
