"""Runs a saved ONNX file in ONNX Runtime, the third witness beside two torch models."""

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

    import onnx
    import onnxruntime
    from numpy.typing import NDArray

    Opener: TypeAlias = Callable[..., onnxruntime.InferenceSession]

CPU = ("CPUExecutionProvider",)

MAX_THREADS = 4
"""The most threads inside an operator, unless the caller asks for more."""

FATAL_ONLY = 4
"""ONNX Runtime's highest severity: it writes nothing to stderr but fatal errors."""

_SUFFIX = "executionprovider"
"""The end of a provider's name in lower case, which the short name lacks."""

Optimisation = Literal["none", "basic", "extended", "all"]
LEVELS: tuple[Optimisation, ...] = ("basic", "extended", "all")
"""The levels that change the graph; each does all that the one before does, and more."""

MAPPED_FROM = 1 << 30
"""Bytes of external data from which ONNX Runtime uses weights where they are; see `is_mapped`."""

GRAPH_MOST = 256 << 20
"""Bytes of a file above which it holds its weights itself, and is not parsed to find that out."""

_UNPACKED = "session.disable_prepacking"
"""ONNX Runtime's option against copies of weights in the order that its kernels prefer."""

_FOLDING = "ConstantFolding"
"""ONNX Runtime's optimiser that stores what depends on weights alone: a table's transposition."""

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's option for the folder of external data, for a model in memory."""

_NODE = re.compile(r"\bnode\.? ?(?:with name|Name:|\()\s*'?([^'\s,)]+)", re.IGNORECASE)
"""The node's name in ONNX Runtime's errors."""


def run_model(
    path: Path,
    probes: Sequence[Mapping[str, NDArray[Any]]],
    *,
    providers: Sequence[str] = CPU,
    level: Optimisation = "all",
    threads: int = 0,
    opener: Opener | None = None,
) -> list[dict[str, NDArray[Any]]]:
    """Run the ONNX file on every probe.

    Args:
        path: the file; its external data is in the same folder.
        probes: input name -> array of the dtype that the graph declares.
        providers: ONNX Runtime's execution providers, in order of preference.
        level: how far the graph is optimised; "none" separates the exporter's faults from the
            runtime's.
        threads: threads inside an operator; 0 takes the machine's, at most MAX_THREADS.
        opener: opens the session; `open_session` if None.

    Returns:
        one dict a probe: output name -> array.

    Raises:
        VerificationError: the runtime refuses the file or a probe, or has fallen back to another
            provider. It names the node if the runtime does.
        UsageError: a provider is not available here.
    """
    session = (opener or open_session)(path, providers=providers, level=level, threads=threads)
    names = [output.name for output in session.get_outputs()]
    return [run_session(session, path, probe, names) for probe in probes]


def try_model(
    path: Path, probes: Sequence[Mapping[str, NDArray[Any]]], opener: Opener
) -> tuple[list[dict[str, NDArray[Any]]], Check | None]:
    """Run the file as `run_model` does; if it is refused, return a failed check with the reason.

    Raises:
        UsageError: a provider is not available here.
    """
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
    """Run an open session on one probe.

    Args:
        session: on the file `path`, which is named in errors.
        path: the file.
        probe: input name -> array of the dtype that the graph declares.
        names: the values to return.

    Returns:
        the arrays by name.

    Raises:
        VerificationError: the runtime refuses the probe.
    """
    try:
        arrays = session.run(list(names), dict(probe))
    except _failures() as error:
        raise _refusal(path, error, "does not run in ONNX Runtime") from error
    return dict(zip(names, arrays, strict=True))


def find_providers(names: Sequence[str]) -> tuple[str, ...]:
    """Return ONNX Runtime's names of providers (`CUDAExecutionProvider`) from short ones (`cuda`).

    names: in any case, with or without the ending.

    Returns:
        in the order given, each once; CPU if none is named.

    Raises:
        UsageError: some are not available here; all of them are named.
    """
    if not names:
        return CPU
    import onnxruntime

    available = onnxruntime.get_available_providers()
    known = {name.lower(): name for name in available}
    short = {key.removesuffix(_SUFFIX): name for key, name in known.items()}
    found = [known.get(name.lower(), short.get(name.lower())) for name in names]
    missing = [name for name, one in zip(names, found, strict=True) if one is None]
    _refuse_unavailable(missing, available)
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _refuse_unavailable(missing: Sequence[str], available: Sequence[str]) -> None:
    if missing:
        raise UsageError(
            f"execution providers not available here: {', '.join(missing)}",
            where="--provider",
            hint=f"available: {', '.join(available)}",
            cause="usage/provider",
        )


def opener_on(providers: Sequence[str]) -> Opener:
    """Return a function that opens sessions as `open_session` does, always on these providers."""

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
    """Open a session on the file.

    Args:
        path: as for `run_model`, and so are `providers`, `level` and `threads`.
        providers: in order of preference.
        level: how far the graph is optimised.
        threads: threads inside an operator.
        exposing: inner values of the graph that become outputs.

    Raises:
        VerificationError: the runtime refuses the file, or has fallen back to another provider.
        UsageError: a provider is not available here.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    available = onnxruntime.get_available_providers()
    _refuse_unavailable([name for name in providers if name not in available], available)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = threads or min(os.cpu_count() or 1, MAX_THREADS)
    options.inter_op_num_threads = 1
    more: dict[str, Any] = {}
    if is_mapped(path):
        options.add_session_config_entry(_UNPACKED, "1")
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        more["disabled_optimizers"] = [_FOLDING]
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
        session = onnxruntime.InferenceSession(graph, options, providers=list(providers), **more)
    except _failures() as error:
        raise _refusal(path, error, "does not load in ONNX Runtime") from error
    lost = [name for name in providers if name not in session.get_providers()]
    if lost:  # without its driver or device; a run on the CPU proves nothing about the provider
        raise VerificationError(
            f"ONNX Runtime could not start {', '.join(lost)} and fell back to "
            f"{', '.join(session.get_providers())}",
            where=path.name,
            hint="install its driver and libraries, or leave --provider out",
            cause="verification/runtime",
        )
    return session


def is_mapped(path: Path) -> bool:
    """Return whether sessions on the file use its weights where they are, in mapped files.

    By default, ONNX Runtime 1.32 copies every weight of a product, to have it in the order of its
    kernels. A session on 4.4 GB of external data then takes 4.0 GB of anonymous memory. Without
    these copies and without its arena it takes 0.04 GB, and the same kernels run more slowly.
    Smaller files run as they do by default.

    path: the file; it may be damaged, and then is not mapped.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        if path.stat().st_size > GRAPH_MOST:
            return False
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError):
        return False
    return sum(map(_bytes_used, graph.initializer)) >= MAPPED_FROM


def _bytes_used(tensor: onnx.TensorProto) -> int:
    """Return the bytes of external data that a tensor takes; half precision is run in float32."""
    length = next((one.value for one in tensor.external_data if one.key == "length"), "")
    wider = 2 if tensor.data_type in {tensor.FLOAT16, tensor.BFLOAT16} else 1
    return wider * int(length) if length.isdecimal() else 0


def _exposed(path: Path, names: Sequence[str]) -> bytes:
    """Return the file's bytes with inner values as outputs; external data stays in its files."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    outputs = {value.name for value in model.graph.output}
    # They have no type here, because the runtime infers it.
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in outputs)
    data: bytes = model.SerializeToString()
    return data


def _failures() -> tuple[type[Exception], ...]:
    """Return all classes that the runtime raises; its own have no common base below Exception."""
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
        cause="verification/runtime",
    )
