"""One ONNX file with the merged weights: captured with the base's, filled by binding, proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import FitError
from lora_export.onnx_export.bindings import apply_weights, read_bindings
from lora_export.onnx_export.save import save_model
from lora_export.onnx_export.topology import Topology, describe
from lora_export.onnx_export.trace import capture
from lora_export.records import Problem
from lora_export.report.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    from torch import Tensor, nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Checkpoint, MergePlan, WrittenFile


@dataclass(frozen=True, slots=True)
class Exported:
    """A saved ONNX file. topology: of the base's graph. weights: the merged ones by parameter."""

    files: tuple[WrittenFile, ...]
    topology: Topology
    weights: Mapping[str, Tensor]


def export(
    source: ModelSource,
    plan: MergePlan,
    merged: Checkpoint,
    path: Path,
    *,
    opset: int | None,
    clock: Stopwatch | None = None,
) -> Exported:
    """Write the merged model to `path`.

    The graph is captured with the base's weights, so that it cannot depend on the merged ones;
    these are then put in by binding.

    Raises:
        InputError, UsageError: see trace.capture.
        FitError: a merged weight has no place in the graph.
    """
    clock = clock or Stopwatch()
    with clock("capture"):
        graph = _capture_base(source, plan, merged, opset)
        topology = describe(graph)
    with clock("fill and save"):
        model = source.load(merged, full={}, untied=plan.separated)
        unused = set(read_bindings(graph).unused)
        _refuse_unused(source, model, plan, unused)
        weights = {name: value for name, value in model.state_dict().items() if name not in unused}
        apply_weights(graph, weights)
        return Exported(save_model(graph, path), topology, weights)


def _capture_base(
    source: ModelSource, plan: MergePlan, merged: Checkpoint, opset: int | None
) -> onnx.ModelProto:
    if plan.reshaped:  # the base's own model has another graph
        base = source.load(merged, full=plan.sources(), untied=plan.separated)
    else:
        base = source.load(plan.base, full=plan.new_tensors(), untied=plan.separated)
    return capture(base, source.inputs, opset=opset)


def _refuse_unused(
    source: ModelSource, model: nn.Module, plan: MergePlan, unused: set[str]
) -> None:
    """An adapted weight that no output depends on would vanish from the file in silence."""
    names = {id(module): name for name, module in model.named_modules()}
    deltas = {delta.module for step in plan.steps() for delta in step.deltas}
    owners = [names[id(source.module(model, module))] for module in sorted(deltas)]
    lost = [name for name in owners if unused & {f"{name}.weight", f"{name}.conv.weight"}]
    if lost:
        hint = "export an output that uses it, or leave it out with --allow-unmatched"
        message = "is adapted, but no output of the graph depends on it"
        raise FitError.of([Problem(message, name, hint) for name in lost])
