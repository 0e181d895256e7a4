"""Prepares a child of the fork server for a command that is to be broken."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from typing_extensions import Self


def set_up(run: dict[str, Any]) -> None:
    """Prepare this process as the request says.

    umask, fsize: the mask and the limit of the size of files. graph: a memo of the captured ONNX
    graph. ahead: how far the head start gets. delay: seconds before the start. watch, call, mode,
    log: the shim's orders.
    """
    if "umask" in run:
        os.umask(run["umask"])
    if "fsize" in run:
        resource.setrlimit(resource.RLIMIT_FSIZE, (run["fsize"], run["fsize"]))
    _remember_graph(run)
    _start_ahead(run)
    time.sleep(run.get("delay", 0))
    if "watch" in run:
        log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        watch, call = os.fsencode(run["watch"]), ctypes.c_long(run["call"])
        ctypes.CDLL(None).shim_arm(watch, call, run["mode"], log)


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
