"""One ONNX file with the merged weights: captured without weights, then filled by its bindings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.errors import FitError, InputError, UsageError, VerificationError
from lora_export.onnx_export.capture.captures import capture_key
from lora_export.onnx_export.capture.dimensions import rename_in_file, renamed
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import read_bindings
from lora_export.onnx_export.file.save import opset_of, save_model, written_opset
from lora_export.onnx_export.file.topology import Topology, describe
from lora_export.onnx_export.stored_weights import graph_dtypes, stored_dtype, weights_of
from lora_export.records import Problem
from lora_export.report.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx
    from torch import nn

    from lora_export.models.subject import Subject
    from lora_export.onnx_export.capture.captures import Beside, Captures
    from lora_export.onnx_export.file.weight_blocks import Weight
    from lora_export.onnx_export.settings import ExportSettings
    from lora_export.records import InputSpec, WrittenFile


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX file that was written, or what a finished file is compared with."""

    #: As captured: bound initializers hold no data.
    graph: onnx.ModelProto
    #: Of the base's graph.
    topology: Topology
    #: ONNX operator set of the graph.
    opset: int
    #: As declared in the graph, by the file's names of dimensions.
    inputs: tuple[InputSpec, ...]
    #: Loads the merged weights by parameter, to be read block by block; see `stored_weights`.
    weights: Callable[[], Mapping[str, Weight]]
    #: "new" where the graph was captured just now, "cached" where an earlier run kept it.
    captured: str
    #: The weights that no output of the graph depends on.
    unused: frozenset[str]
    #: Why the captured graph could not be kept, where it could not.
    warnings: tuple[str, ...] = ()
    #: The files written, the model first; empty where none was.
    files: tuple[WrittenFile, ...] = ()
    #: Where counts on the network are kept; None where its graph is not kept either.
    beside: Beside | None = None


def export(
    subject: Subject,
    path: Path | None,
    settings: ExportSettings,
    *,
    clock: Stopwatch | None = None,
) -> Exported:
    """Write the merged network to `path`; with None make all but the file.

    The graph is captured without weights, so that it cannot depend on them. The merged weights are
    then written into it by its bindings, block by block. Without a file, the result is what a
    finished file is compared with.

    Args:
        subject: the merged network.
        path: the .onnx file, which must not exist yet.
        settings: how the graph is captured and filled.
        clock: counts the stages "capture" and "fill and save".

    Raises:
        InputError, UsageError: see trace.capture.
        FitError: a merged weight has no place in the graph.
        VerificationError: the file has another opset than the graph.
    """
    clock = clock or Stopwatch()
    with clock("capture"):
        planned = _prepare(subject, settings)
    if path is None:
        return planned
    with clock("fill and save", "bytes") as progress:
        files = save_model(
            planned.graph,
            path,
            planned.weights(),
            data_name=settings.data_name,
            progress=progress,
        )
    _check_opset(path, planned.opset)
    return replace(planned, files=files)


def _prepare(subject: Subject, settings: ExportSettings) -> Exported:
    dtype = settings.dtype
    inputs = _inputs(subject.source.inputs, dtype)

    def fresh() -> onnx.ModelProto:
        blank = subject.blank(dtype=dtype)
        try:
            return capture(blank, inputs, opset=settings.opset)
        except (InputError, UsageError):
            # A checkpoint that does not fill the model is the better reason: it is raised here.
            subject.load(dtype=stored_dtype(subject.merged))
            raise

    key = _key(subject, inputs, settings)
    graph, how, warnings = _kept(settings.captures, key, fresh)
    unused, dtypes = frozenset(read_bindings(graph).unused), graph_dtypes(graph)

    def weights() -> Mapping[str, Weight]:
        model = subject.load(dtype=stored_dtype(subject.merged))
        if settings.whole:
            refuse_unused(subject, model, unused)
        found = weights_of(model, dtypes)
        return {name: weight for name, weight in found.items() if name not in unused}

    rename_in_file(graph, settings.dimensions)
    inputs = tuple(renamed(spec, settings.dimensions) for spec in inputs)
    planned = Exported(
        graph, describe(graph), opset_of(graph), inputs, weights, how, unused, warnings
    )
    if settings.captures and key:
        planned = replace(planned, beside=settings.captures.beside(key))
    return planned


def _key(subject: Subject, inputs: tuple[InputSpec, ...], settings: ExportSettings) -> str | None:
    """Return the key of the graph among the captures; None without captures or an identity."""
    identity = subject.source.identity(subject.blueprint) if settings.captures else None
    if identity is None:
        return None
    untied = subject.plan.separated
    return capture_key(identity, inputs, opset=settings.opset, dtype=settings.dtype, untied=untied)


def _kept(
    captures: Captures | None, key: str | None, fresh: Callable[[], onnx.ModelProto]
) -> tuple[onnx.ModelProto, str, tuple[str, ...]]:
    """Take the graph from the cache, else make and keep it.

    Returns (graph, "new" or "cached", warnings).
    """
    if captures is None or key is None:
        return fresh(), "new", ()
    kept = captures.take(key)
    if kept is not None:
        return kept, "cached", ()
    graph = fresh()
    warning = captures.keep(key, graph)
    return graph, "new", (warning,) if warning else ()


def _inputs(declared: tuple[InputSpec, ...], dtype: str) -> tuple[InputSpec, ...]:
    """Return the inputs of the model in `dtype`: its float32 inputs have that dtype too."""
    return tuple(
        replace(spec, dtype=dtype) if spec.dtype == "float32" else spec for spec in declared
    )


def _check_opset(path: Path, opset: int) -> None:
    found = written_opset(path)
    if found != opset:
        message = f"was written in opset {found}, but the graph is of opset {opset}"
        raise VerificationError(message, where=path.name, cause="verification/check-failed")


def refuse_unused(subject: Subject, model: nn.Module, unused: frozenset[str]) -> None:
    """Refuse adapted weights that no output depends on: the file would lack them without a word.

    Args:
        subject: the merged network.
        model: the network itself, as `subject` loads it.
        unused: weights without a place in the graph, by the model's names.

    Raises:
        FitError: there are such weights; all are named.
    """
    names = {id(module): name for name, module in model.named_modules()}
    deltas = {delta.module for step in subject.plan.steps() for delta in step.deltas}
    owners = [names[id(subject.source.module(model, module))] for module in sorted(deltas)]
    lost = [name for name in owners if unused & {f"{name}.weight", f"{name}.conv.weight"}]
    if lost:
        hint = "export an output that uses it, or leave it out with --allow-unmatched"
        message = "is adapted, but no output of the graph depends on it"
        raise FitError.of([Problem(message, name, hint, cause="fit/graph-weight") for name in lost])
