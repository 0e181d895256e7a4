"""Captures a torch model as an ONNX graph once, so that no node depends on a weight's value."""

from __future__ import annotations

import inspect
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError, UsageError
from lora_export.execution.garbage import no_collection
from lora_export.models.network.calling import (
    FAILURES,
    bind_call,
    call_model,
    name_outputs,
    without_cache,
)
from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture import dimensions, passes, weights_in_graph
from lora_export.onnx_export.file.bindings import write_bindings
from lora_export.onnx_export.file.save import opset_of
from lora_export.records import example_sizes, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx
    import onnx_ir
    from torch import Tensor, nn

    from lora_export.records import InputSpec

REASON_LENGTH = 300
OLDEST_OPSET = 7
"""The oldest that torch.onnx knows; most models need 18 at least."""


@no_collection()
def capture(
    model: nn.Module,
    inputs: Sequence[InputSpec],
    *,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
) -> onnx.ModelProto:
    """Trace the model into an ONNX graph without its weights, with the table of their bindings.

    What is bound has dtype and shape in the graph, and no data: `save.save_model` puts it in.
    transformers' own exporter is used for its models where it is installed and able, else
    torch.onnx.export(dynamo=True). The graph is the same for any values of the weights.

    Args:
        model: in eval mode, on CPU, in any floating dtype. It is not changed. Its weights are never
            read, but by one call of the model.
        inputs: names, dtypes and dimensions; named dimensions are dynamic in the graph, under
            their names, and equal names must mean equal sizes.
        output_names: names for the outputs in order; default: the names `calling.name_outputs`
            gives.
        opset: ONNX operator set; None takes torch's default.

    Raises:
        UsageError: the model is in training mode, does not take these inputs, fixes a dimension
            declared dynamic, or cannot be written in this opset.
        InputError: the model cannot be traced, or its weights are used behind the tracer's back.
    """
    if model.training:
        raise UsageError("the model is in training mode", hint="call model.eval() first")
    check_opset(opset)
    parameters_named = [replace(spec, name=spec.name.replace(".", "_")) for spec in inputs]
    examples = _examples(parameters_named)
    names = _chosen(_try_model(model, examples), output_names)
    traced = _trace(model, parameters_named, examples, opset)
    _name_inputs(traced, parameters_named, inputs)
    hidden = weights_in_graph.find(model, traced)
    _name_outputs(traced, names)
    passes.simplify(traced, hidden)
    dimensions.rename(traced, inputs)
    return _to_proto(model, traced, inputs, opset)


def check_opset(opset: int | None) -> None:
    """Refuse what no model can be written in, before anything is loaded.

    Raises:
        UsageError: the operator set is older than torch.onnx writes or newer than onnx knows.
    """
    if opset is None:
        return
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UsageError(
            f"there is no opset {opset} to be written: {OLDEST_OPSET} to {newest} are known",
            where="--opset",
            hint="leave it out for the exporter's own",
        )


def _examples(inputs: Sequence[InputSpec]) -> dict[str, Tensor]:
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
    """The names of the model's outputs; finds faults of the inputs before torch words them."""
    with quiet():
        return list(call_model(model, examples))


def _chosen(names: list[str], wanted: Sequence[str] | None) -> Sequence[str]:
    if wanted is None:
        return names
    if len(wanted) != len(names) or len(set(wanted)) != len(wanted):
        raise UsageError(
            f"{len(wanted)} output names for the outputs {', '.join(names)}",
            hint="give one distinct name for each",
        )
    return wanted


def _trace(
    model: nn.Module,
    inputs: Sequence[InputSpec],
    examples: dict[str, Tensor],
    opset: int | None,
) -> onnx_ir.Model:
    with quiet(), without_cache(model), _flat_forward(model, inputs), _grouped_experts(model):
        if _is_transformers_model(model):
            # Torch's exporter, below, may still know how; if not, its reason is the plainer one.
            with suppress(*FAILURES):
                return _by_transformers(model, inputs, dict(examples), opset)
        try:
            return _by_torch(model, inputs, examples, opset)
        except FAILURES as error:
            raise _failure(model, error) from error


def _failure(model: nn.Module, error: BaseException) -> InputError:
    """Tells apart the two stages of torch.onnx.export: tracing, and the translation to ONNX."""
    traced = any(base.__name__ == "ConversionError" for base in type(error).__mro__)
    if traced:
        message = "torch traced the model but cannot translate it to ONNX"
        hint = (
            "write the operation named here in forward with others, or try a newer --opset or a "
            "newer onnxscript"
        )
    else:
        message = "torch cannot trace the model"
        hint = (
            "declare dimensions that the model fixes as numbers, or give a --model whose forward "
            "torch.export accepts"
        )
    return InputError(f"{message}: {_reason(error)}", where=type(model).__name__, hint=hint)


def _is_transformers_model(model: nn.Module) -> bool:
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.")
        for base in type(model).__mro__
    )


def _by_transformers(
    model: nn.Module, inputs: Sequence[InputSpec], examples: dict[str, Tensor], opset: int | None
) -> onnx_ir.Model:
    # By name, as not every version of transformers that we admit has this module.
    exporter = import_module("transformers.exporters.exporter_onnx")
    config = exporter.OnnxConfig(
        dynamic_shapes=dimensions.dynamic_shapes(inputs), opset_version=opset, optimize=False
    )
    program: onnx_ir.Model = exporter.OnnxExporter().export_program(model, examples, config)[0]
    return program


def _by_torch(
    model: nn.Module, inputs: Sequence[InputSpec], examples: dict[str, Tensor], opset: int | None
) -> onnx_ir.Model:
    import torch

    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (),
            kwargs=examples,
            dynamic_shapes=dimensions.dynamic_shapes(inputs),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise InputError("torch.onnx.export gave no program", where=type(model).__name__)
    return program.model


@contextmanager
def _grouped_experts(model: nn.Module) -> Iterator[None]:
    """Let a mixture of experts run as one grouped product: its loop asks which experts are hit."""
    own = getattr(model, "get_experts_implementation", lambda: None)()
    choose = getattr(model, "set_experts_implementation", None)
    if choose is None or own is None:
        yield
        return
    with suppress(ValueError):  # a model without experts
        choose("grouped_mm")
    try:
        yield
    finally:
        choose(own)


@contextmanager
def _flat_forward(model: nn.Module, inputs: Sequence[InputSpec]) -> Iterator[None]:
    """Give the model a forward whose parameters are the inputs and whose result is a flat dict.

    torch.export reads the signature, and would otherwise spread `**kwargs` or refuse optional
    parameters. The forward also states which sizes are equal, which saves run-time broadcasts.
    """
    import torch

    names = [spec.name for spec in inputs]
    call = bind_call(model, names)

    def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for (name, axis), parts in dimensions.equal_sizes(inputs):
            same = given[name].shape[axis] == sum(given[n].shape[place] for n, place in parts)
            # Torch documents it, underscore and all.
            torch._check(same)  # type: ignore[no-untyped-call] # noqa: SLF001
        return name_outputs(call(given), taken=names)

    signature = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    forward.__signature__ = signature  # type: ignore[attr-defined]
    own = model.__dict__.get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.forward = own


def _name_inputs(
    traced: onnx_ir.Model, parameters_named: Sequence[InputSpec], inputs: Sequence[InputSpec]
) -> None:
    """Give the graph's inputs the names that a parameter of a function cannot have: with dots."""
    names = {one.name: spec.name for one, spec in zip(parameters_named, inputs, strict=True)}
    for value in traced.graph.inputs:
        value.name = names.get(str(value.name), value.name)


def _name_outputs(traced: onnx_ir.Model, names: Sequence[str]) -> None:
    """Name the graph's outputs; one that is an input, weight or earlier output gets a node."""
    import onnx_ir

    graph = traced.graph
    if len(graph.outputs) != len(names):
        raise InputError(
            f"the traced graph has {len(graph.outputs)} outputs, the model returned {len(names)}",
            hint="forward must return the same structure every time",
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
    import onnx_ir

    bindings = weights_in_graph.bind(model, traced)
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
        )
    return proto


def _reason(error: BaseException | None) -> str:
    """The first telling line of the innermost cause: torch wraps it in pages of advice."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else repr(error)
    return text[:REASON_LENGTH]
