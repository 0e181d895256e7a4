"""Runs a saved ONNX file in ONNX Runtime, quietly: the third witness beside two torch models."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal

from lora_export.errors import UsageError, VerificationError
from lora_export.records import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    import onnxruntime
    from numpy.typing import NDArray

    Opener: TypeAlias = Callable[..., onnxruntime.InferenceSession]

CPU = ("CPUExecutionProvider",)
MAX_THREADS = 4
FATAL_ONLY = 4
_SUFFIX = "executionprovider"

Optimisation = Literal["none", "basic", "extended", "all"]
LEVELS: tuple[Optimisation, ...] = ("basic", "extended", "all")
"""Those that change the graph, each all that the one before does and more."""

# The folder of external data, of a model that is given as bytes.
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

_NODE = re.compile(r"\bnode\.? ?(?:with name|Name:|\()\s*'?([^'\s,)]+)", re.IGNORECASE)


def run_model(
    path: Path,
    probes: Sequence[Mapping[str, NDArray[Any]]],
    *,
    providers: Sequence[str] = CPU,
    level: Optimisation = "all",
    threads: int = 0,
    opener: Opener | None = None,
    exposing: Sequence[str] = (),
) -> list[dict[str, NDArray[Any]]]:
    """Outputs of the ONNX file for every probe, by output name.

    Args:
        path: the file; its external data lies beside it.
        probes: input name -> array of the dtype the graph declares.
        providers: ONNX Runtime's execution providers, in order of preference.
        level: how far the graph is optimised; "none" tells the exporter's faults from the
            runtime's.
        threads: threads inside an operator; 0 takes the machine's, at most MAX_THREADS.
        opener: what opens the session, `open_session` if None.
        exposing: inner values of the graph to return as well.

    Raises:
        VerificationError: the runtime refuses the file or a probe; names the node when it says. A
            session that fell back to another provider is refused as well.
        UsageError: a provider is not available here.
    """
    session = (opener or open_session)(
        path, providers=providers, level=level, threads=threads, exposing=exposing
    )
    names = [output.name for output in session.get_outputs()]
    return [run_session(session, path, probe, names) for probe in probes]


def try_model(
    path: Path, probes: Sequence[Mapping[str, NDArray[Any]]], opener: Opener
) -> tuple[list[dict[str, NDArray[Any]]], Check | None]:
    """As `run_model`, or the failed check that says why there are no outputs."""
    try:
        return run_model(path, probes, opener=opener), None
    except VerificationError as error:
        problem = error.problems[0]
        return [], Check("runs in ONNX Runtime", passed=False, worst=1.0, tolerance=0.0,
                         where=problem.where, detail=problem.message)  # fmt: skip


def run_session(
    session: onnxruntime.InferenceSession,
    path: Path,
    probe: Mapping[str, NDArray[Any]],
    names: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """The values `names` of an open session for one probe.

    Raises:
        VerificationError: the runtime refuses the probe.
    """
    try:
        arrays = session.run(list(names), dict(probe))
    except _failures() as error:
        raise _refusal(path, error, "does not run in ONNX Runtime") from error
    return dict(zip(names, arrays, strict=True))


def find_providers(names: Sequence[str]) -> tuple[str, ...]:
    """ONNX Runtime's names of the providers called so (`cuda` or `CUDAExecutionProvider`).

    Returns:
        in the order given, each once; CPU where none is named.

    Raises:
        UsageError: one is not available here; all such names are told.
    """
    if not names:
        return CPU
    import onnxruntime

    available = onnxruntime.get_available_providers()
    known = {name.lower(): name for name in available}
    short = {key.removesuffix(_SUFFIX): name for key, name in known.items()}
    found = [known.get(name.lower(), short.get(name.lower())) for name in names]
    missing = [name for name, one in zip(names, found, strict=True) if one is None]
    if missing:
        raise UsageError(
            f"execution providers not available here: {', '.join(missing)}",
            where="--provider",
            hint=f"available: {', '.join(available)}",
        )
    return tuple(dict.fromkeys(one for one in found if one is not None))


def opener_on(providers: Sequence[str]) -> Opener:
    """Opens sessions as `open_session` does, on these providers whatever else is asked."""

    def opener(path: Path, **settings: Any) -> onnxruntime.InferenceSession:
        return open_session(path, **{**settings, "providers": providers})

    return opener


def open_session(
    path: Path,
    *,
    providers: Sequence[str] = CPU,
    level: Optimisation = "all",
    threads: int = 0,
    exposing: Sequence[str] = (),
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
    options.graph_optimization_level = {
        "none": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[level]
    graph: str | bytes = str(path)
    if exposing:
        options.add_session_config_entry(_DATA_FOLDER, str(path.parent.resolve()))
        graph = _exposed(path, exposing)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=list(providers))
    except _failures() as error:
        raise _refusal(path, error, "does not load in ONNX Runtime") from error
    lost = [name for name in providers if name not in session.get_providers()]
    if lost:  # as without a driver or a device: it would run on the CPU, and prove nothing of them
        raise VerificationError(
            f"ONNX Runtime could not start {', '.join(lost)} and fell back to "
            f"{', '.join(session.get_providers())}",
            where=path.name,
            hint="see that its driver and libraries are installed, or leave --provider out",
        )
    return session


def _exposed(path: Path, names: Sequence[str]) -> bytes:
    """The file with inner values among its outputs; external data stays where it is."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    outputs = {value.name for value in model.graph.output}
    # Without a type: the runtime infers it.
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in outputs)
    data: bytes = model.SerializeToString()
    return data


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
