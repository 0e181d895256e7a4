"""The capture of a torch model as an ONNX graph in which no node depends on a weight's value."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.errors import InputError, UsageError
from lora_export.execution.garbage import no_collection
from lora_export.models.network.calling import call_model
from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture import dimensions, passes, weights_in_graph
from lora_export.onnx_export.capture.exporters import trace_model
from lora_export.onnx_export.file.bindings import write_bindings
from lora_export.onnx_export.file.save import opset_of
from lora_export.records import example_sizes, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    import onnx_ir
    from torch import Tensor, nn

    from lora_export.records import InputSpec

OLDEST_OPSET = 7
"""The oldest operator set that torch.onnx knows; most models need 18 at least."""


@no_collection()
def capture(
    model: nn.Module,
    inputs: Sequence[InputSpec],
    *,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
) -> onnx.ModelProto:
    """Trace the model into an ONNX graph without its weights, with the table of their bindings.

    Bound initializers have dtype and shape in the graph, and no data: `save.save_model` writes it.
    transformers' own exporter captures its models where it is installed and able to, else
    torch.onnx.export(dynamo=True). The graph is the same for any values of the weights.

    Args:
        model: in eval mode, on CPU, in any floating dtype. It is not changed. One call of the model
            is all that reads its weights.
        inputs: names, dtypes and dimensions; named dimensions are dynamic in the graph, under
            their names, and equal names must mean equal sizes.
        output_names: names for the outputs in order; default: the names `calling.name_outputs`
            gives.
        opset: ONNX operator set; None takes torch's default.

    Raises:
        UsageError: the model is in training mode, does not take these inputs, fixes a dimension
            declared dynamic, or cannot be written in this opset.
        InputError: the model cannot be traced, or its code uses a weight as a plain tensor, which
            the tracer takes for a constant.
    """
    if model.training:
        raise UsageError(
            "the model is in training mode",
            hint="call model.eval() first",
            cause="usage/model-function",
        )
    check_opset(opset)
    parameters_named = [replace(spec, name=spec.name.replace(".", "_")) for spec in inputs]
    examples = _examples(parameters_named)
    # Called before it is traced: a mistake in the inputs has a plain message here, and none there.
    names = _chosen(_try_model(model, examples), output_names)
    traced = trace_model(model, parameters_named, examples, opset)
    _name_inputs(traced, parameters_named, inputs)
    # The weights are found first: an output of the same name takes it from the initializer.
    hidden = weights_in_graph.find(model, traced)
    _name_outputs(traced, names)
    passes.simplify(traced, hidden)
    dimensions.rename(traced, inputs)
    return _to_proto(model, traced, inputs, opset)


def check_opset(opset: int | None) -> None:
    """Refuse an operator set that no model can be written in, before anything is loaded.

    Raises:
        UsageError: the operator set is older than torch.onnx writes or newer than onnx knows.
    """
    if opset is None:
        return
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UsageError(
            f"no opset {opset} can be written: {OLDEST_OPSET} to {newest} are known",
            where="--opset",
            hint="leave it out for the exporter's own",
            cause="usage/option-value",
        )


def _examples(inputs: Sequence[InputSpec]) -> dict[str, Tensor]:
    """Make an example of every input: ones, or zeros where only zero is allowed."""
    import torch

    sizes = example_sizes(inputs)
    examples = {
        spec.name: torch.ones(
            [size_of(dim, sizes) for dim in spec.dims],
            dtype=getattr(torch, spec.dtype),
        ).mul_(spec.high != 1)
        for spec in inputs
    }
    for spec in inputs:
        if spec.leading:
            value, count = spec.leading
            examples[spec.name][..., :count] = value
    return examples


def _try_model(model: nn.Module, examples: dict[str, Tensor]) -> list[str]:
    """Call the model once and return the names of its outputs."""
    with quiet():
        return list(call_model(model, examples))


def _chosen(names: list[str], wanted: Sequence[str] | None) -> Sequence[str]:
    if wanted is None:
        return names
    if len(wanted) != len(names) or len(set(wanted)) != len(wanted):
        raise UsageError(
            f"{len(wanted)} output names for the outputs {', '.join(names)}",
            hint="give one distinct name for each",
            cause="usage/model-inputs",
        )
    return wanted


def _name_inputs(
    traced: onnx_ir.Model, parameters_named: Sequence[InputSpec], inputs: Sequence[InputSpec]
) -> None:
    """Give the graph's inputs their declared names, with dots, which no parameter can have."""
    names = {one.name: spec.name for one, spec in zip(parameters_named, inputs, strict=True)}
    for value in traced.graph.inputs:
        value.name = names.get(str(value.name), value.name)


def _name_outputs(traced: onnx_ir.Model, names: Sequence[str]) -> None:
    """Name the graph's outputs; one that is an input, weight or earlier output gets an Identity.

    Raises:
        InputError: the graph has another number of outputs than the model returned.
    """
    import onnx_ir

    graph = traced.graph
    if len(graph.outputs) != len(names):
        raise InputError(
            f"the traced graph has {len(graph.outputs)} outputs, the model returned {len(names)}",
            hint="forward must return the same structure every time",
            cause="input/capture",
        )
    taken: set[int] = set()
    for place, name in enumerate(names):
        value = graph.outputs[place]
        if name in graph.initializers:
            weights_in_graph.rename(graph.initializers[name], f"{name}.value")
        if value.is_graph_input() or value.is_initializer() or id(value) in taken:
            copy = onnx_ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            graph.append(copy)
            value = graph.outputs[place] = copy.outputs[0]
        value.name = name
        taken.add(id(value))
    passes.make_names_unique(traced)


def _to_proto(
    model: nn.Module, traced: onnx_ir.Model, inputs: Sequence[InputSpec], opset: int | None
) -> onnx.ModelProto:
    """Write the traced graph as a protobuf message, without data of weights, with its bindings.

    Raises:
        UsageError: it has other dimensions than declared, or another opset than asked for.
    """
    import onnx_ir

    bindings = weights_in_graph.bind(model, traced)  # reads metadata that the next line removes
    passes.strip_traces_of_the_run(traced)
    weights_in_graph.empty(traced, bindings)
    proto = onnx_ir.serde.serialize_model(traced)
    write_bindings(proto, bindings)
    dimensions.check(proto, inputs)
    written = opset_of(proto)
    if opset is not None and written != opset:
        wanted = f"{written} or newer" if opset < written else f"{written}"
        raise UsageError(
            f"this model can be written in opset {wanted}, not {opset}",
            where="--opset",
            hint=f"--opset {written}",
            cause="usage/option-value",
        )
    return proto
