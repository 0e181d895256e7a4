"""Runs a saved ONNX file in ONNX Runtime, quietly: the third witness beside two torch models."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError, VerificationError
from lora_export.records import Check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnxruntime
    from numpy.typing import NDArray

CPU = ("CPUExecutionProvider",)
MAX_THREADS = 4
FATAL_ONLY = 4

_NODE = re.compile(r"\bnode\.? ?(?:with name|Name:|\()\s*'?([^'\s,)]+)", re.IGNORECASE)


def run_model(
    path: Path,
    probes: Sequence[Mapping[str, NDArray[Any]]],
    *,
    providers: Sequence[str] = CPU,
    optimize: bool = True,
    threads: int = 0,
) -> list[dict[str, NDArray[Any]]]:
    """Outputs of the ONNX file for every probe, by output name.

    Args:
        path: the file; its external data lies beside it.
        probes: input name -> array of the dtype the graph declares.
        providers: ONNX Runtime's execution providers, in order of preference.
        optimize: False turns all graph optimisation off, to tell the exporter's faults from the
            runtime's.
        threads: threads inside an operator; 0 takes the machine's, at most MAX_THREADS.

    Raises:
        VerificationError: the runtime refuses the file or a probe; names the node when it says.
        UsageError: a provider is not available here.
    """
    session = open_session(path, providers=providers, optimize=optimize, threads=threads)
    return [run_session(session, path, probe) for probe in probes]


def run_session(
    session: onnxruntime.InferenceSession, path: Path, probe: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """One run of a session on the file `path`; arguments and errors as for `run_model`."""
    names = [output.name for output in session.get_outputs()]
    try:
        arrays = session.run(names, dict(probe))
    except _failures() as error:
        raise _refusal(path, error, "does not run in ONNX Runtime") from error
    return dict(zip(names, arrays, strict=True))


def open_session(
    path: Path,
    *,
    providers: Sequence[str] = CPU,
    optimize: bool = True,
    threads: int = 0,
) -> onnxruntime.InferenceSession:
    """A session on the file; arguments and errors as for `run_model`."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    unknown = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if unknown:
        raise UsageError(
            f"execution providers not available: {', '.join(unknown)}",
            hint=f"available: {', '.join(onnxruntime.get_available_providers())}",
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = threads or min(os.cpu_count() or 1, MAX_THREADS)
    options.inter_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except _failures() as error:
        raise _refusal(path, error, "does not load in ONNX Runtime") from error


def check_loads(path: Path, *, providers: Sequence[str] = CPU) -> Check:
    """Whether ONNX Runtime loads the file, as a check: worst is 0 or 1 refusals."""
    try:
        open_session(path, providers=providers)
    except VerificationError as error:
        problem = error.problems[0]
        return Check("loads in ONNX Runtime", passed=False, worst=1.0, tolerance=0.0,
                     where=problem.where, detail=problem.message)  # fmt: skip
    return Check("loads in ONNX Runtime", passed=True, worst=0.0, tolerance=0.0, where=path.name)


def _failures() -> tuple[type[Exception], ...]:
    """All classes the runtime raises: its own have no common base below Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    own = [kind for kind in vars(native).values() if isinstance(kind, type)]
    return (
        *(kind for kind in own if issubclass(kind, Exception)),
        RuntimeError,
        ValueError,
        TypeError,
    )


def _refusal(path: Path, error: Exception, problem: str) -> VerificationError:
    text = " ".join(str(error).split())
    node = _NODE.search(text)
    return VerificationError(
        f"{problem}: {text[:400]}",
        where=f"{path.name}: {node[1]}" if node else path.name,
        hint="a size may be fixed inside the model: declare it as a number with --input",
    )
