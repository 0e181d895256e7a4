"""One ONNX file with the merged weights: captured without any, filled by binding, proven."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.errors import FitError, InputError, UsageError, VerificationError
from lora_export.onnx_export.capture.captures import capture_key
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import read_bindings
from lora_export.onnx_export.file.save import opset_of, save_model, written_opset
from lora_export.onnx_export.file.topology import Topology, describe
from lora_export.records import Problem
from lora_export.report.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx
    from torch import Tensor, nn

    from lora_export.models.source import ModelSource
    from lora_export.onnx_export.capture.captures import Captures
    from lora_export.records import Checkpoint, InputSpec, MergePlan, WrittenFile


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX file, written or to be held against one that was.

    topology: of the base's graph. opset: as written. inputs: as declared in the graph. weights:
    loads the merged ones by parameter; whoever calls it decides how long they are in memory.
    captured: whether the graph was made just now ("new") or kept from an earlier run ("cached").
    unused: the weights of which the graph has no use.
    """

    topology: Topology
    opset: int
    inputs: tuple[InputSpec, ...]
    weights: Callable[[], Mapping[str, Tensor]]
    captured: str
    unused: frozenset[str]
    warnings: tuple[str, ...] = ()
    files: tuple[WrittenFile, ...] = ()


def export(
    source: ModelSource,
    plan: MergePlan,
    merged: Checkpoint,
    path: Path,
    *,
    opset: int | None,
    dtype: str = "float32",
    captures: Captures | None = None,
    whole: bool = True,
    clock: Stopwatch | None = None,
) -> Exported:
    """Write the merged model to `path`, in `dtype`.

    The graph is captured without weights, so that it cannot depend on them; the merged ones are
    then put in by binding, one at a time. captures: where graphs of earlier runs are. whole: an
    adapted weight must be in this graph; if it is a part, see `refuse_unused`.

    Raises:
        InputError, UsageError: see trace.capture.
        FitError: a merged weight has no place in the graph.
        VerificationError: the file has another opset than the graph.
    """
    clock = clock or Stopwatch()
    with clock("capture"):
        graph, planned = _prepare(
            source, plan, merged, opset=opset, dtype=dtype, captures=captures, whole=whole
        )
    with clock("fill and save"):
        files = save_model(graph, path, planned.weights())
    _check_opset(path, planned.opset)
    return replace(planned, files=files)


def expect(
    source: ModelSource,
    plan: MergePlan,
    merged: Checkpoint,
    *,
    opset: int | None,
    dtype: str = "float32",
    captures: Captures | None = None,
    whole: bool = True,
) -> Exported:
    """What `export` would write, without files: to hold a finished file against it.

    Raises:
        InputError, UsageError: see trace.capture.
    """
    return _prepare(source, plan, merged, opset=opset, dtype=dtype, captures=captures, whole=whole)[
        1
    ]


def _prepare(
    source: ModelSource,
    plan: MergePlan,
    merged: Checkpoint,
    *,
    opset: int | None,
    dtype: str,
    captures: Captures | None,
    whole: bool,
) -> tuple[onnx.ModelProto, Exported]:
    # The base's own model has another graph where the adapter changes the model's shape.
    checkpoint = merged if plan.reshaped else plan.base
    inputs = _inputs(source.inputs, dtype)

    def fresh() -> onnx.ModelProto:
        blank = source.blank(checkpoint, untied=plan.separated, dtype=dtype)
        try:
            return capture(blank, inputs, opset=opset)
        except (InputError, UsageError):
            # A model that the checkpoint does not fill is the plainer reason, where it is one.
            source.load(merged, full={}, untied=plan.separated, dtype=dtype)
            raise

    identity = source.identity(checkpoint) if captures else None
    key = None
    if identity is not None:
        key = capture_key(identity, inputs, opset=opset, dtype=dtype, untied=plan.separated)
    graph, how, warnings = _kept(captures, key, fresh)
    unused = frozenset(read_bindings(graph).unused)

    def weights() -> Mapping[str, Tensor]:
        model = source.load(merged, full={}, untied=plan.separated, dtype=dtype)
        if whole:
            refuse_unused(source, model, plan, unused)
        return {name: value for name, value in model.state_dict().items() if name not in unused}

    planned = Exported(describe(graph), opset_of(graph), inputs, weights, how, unused, warnings)
    return graph, planned


def _kept(
    captures: Captures | None, key: str | None, fresh: Callable[[], onnx.ModelProto]
) -> tuple[onnx.ModelProto, str, tuple[str, ...]]:
    """(graph, "new" or "cached", warnings): from the cache, else made and put there."""
    if captures is None or key is None:
        return fresh(), "new", ()
    kept = captures.take(key)
    if kept is not None:
        return kept, "cached", ()
    graph = fresh()
    warning = captures.keep(key, graph)
    return graph, "new", (warning,) if warning else ()


def _inputs(declared: tuple[InputSpec, ...], dtype: str) -> tuple[InputSpec, ...]:
    """The inputs of a model in `dtype`: it takes its float32 inputs in that as well."""
    return tuple(
        replace(spec, dtype=dtype) if spec.dtype == "float32" else spec for spec in declared
    )


def _check_opset(path: Path, opset: int) -> None:
    found = written_opset(path)
    if found != opset:
        message = f"was written in opset {found}, the graph is of opset {opset}"
        raise VerificationError(message, where=path.name)


def refuse_unused(
    source: ModelSource, model: nn.Module, plan: MergePlan, unused: frozenset[str]
) -> None:
    """An adapted weight that no output depends on would vanish from the file in silence.

    Raises:
        FitError: with every such weight.
    """
    names = {id(module): name for name, module in model.named_modules()}
    deltas = {delta.module for step in plan.steps() for delta in step.deltas}
    owners = [names[id(source.module(model, module))] for module in sorted(deltas)]
    lost = [name for name in owners if unused & {f"{name}.weight", f"{name}.conv.weight"}]
    if lost:
        hint = "export an output that uses it, or leave it out with --allow-unmatched"
        message = "is adapted, but no output of the graph depends on it"
        raise FitError.of([Problem(message, name, hint) for name in lost])
