"""Dynamic dimensions: torch numbers them, and the graph has the names that the user declared."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.records import SUM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx
    import onnx_ir

    from lora_export.records import InputSpec

    Axis = tuple[str, int]


def dynamic_shapes(inputs: Sequence[InputSpec]) -> dict[str, dict[int, Any]]:
    """Make torch.export's `dynamic_shapes`: every named dimension is dynamic, in torch's range.

    Named `Dim`s are not used: they fail on models that bound a dimension from above, as every
    table of positions does.
    """
    from torch.export import Dim

    return {
        spec.name: {axis: Dim.DYNAMIC for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
        for spec in inputs
    }


def equal_sizes(inputs: Sequence[InputSpec]) -> Iterator[tuple[Axis, tuple[Axis, ...]]]:
    """List axes, as (input, axis), with the axes whose size, or sum of sizes, they have.

    Sums come last: their parts may be named by a later input.
    """
    first: dict[str, Axis] = {}
    sums = []
    for spec in inputs:
        for axis, dim in enumerate(spec.dims):
            if not isinstance(dim, str):
                continue
            if dim in first:
                yield (spec.name, axis), (first[dim],)
            elif SUM in dim:
                sums.append(((spec.name, axis), dim.split(SUM)))
            first.setdefault(dim, (spec.name, axis))
    for place, parts in sums:
        yield place, tuple(first[part] for part in parts)


def rename(traced: onnx_ir.Model, inputs: Sequence[InputSpec]) -> None:
    """Replace torch's symbols (like s72) by the declared names everywhere in the graph, in place.

    Raises:
        UsageError: an input is missing, a dimension declared dynamic is fixed, or the model forces
            two differently named dimensions to be equal.
    """
    names = _symbol_names(traced, inputs)
    if not names:
        return
    import onnx_ir

    for value in _values(traced):
        if value.shape is None:
            continue
        value.shape = onnx_ir.Shape(
            [
                _with_names(str(dim.value), names)
                if isinstance(dim, onnx_ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            ]
        )


def rename_in_file(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give the dynamic dimensions of a graph other names, in place.

    names: the new ones by the old ones; others stay.
    """
    if not names:
        return
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _with_names(dim.dim_param, names)


def renamed(spec: InputSpec, names: Mapping[str, str]) -> InputSpec:
    """Return an input with other names of its dynamic dimensions; see `rename_in_file`."""
    dims = tuple(_with_names(dim, names) if isinstance(dim, str) else dim for dim in spec.dims)
    spans = {_with_names(name, names): span for name, span in spec.spans.items()}
    return replace(spec, dims=dims, spans=spans)


def _with_names(dim: str, names: Mapping[str, str]) -> str:
    """Return a dimension with new names, also inside an expression such as s72 + s5."""
    # Whole words only: s7 is no part of s72.
    return re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim)


def _symbol_names(traced: onnx_ir.Model, inputs: Sequence[InputSpec]) -> dict[str, str]:
    """Map torch's symbols to the declared names."""
    graph_inputs = {value.name: value for value in traced.graph.inputs}
    names: dict[str, str] = {}
    for spec in inputs:
        value = graph_inputs.get(spec.name)
        if value is None or value.shape is None or len(value.shape) != len(spec.dims):
            hint = "declare the inputs that the model's forward uses, with their dimensions"
            raise UsageError(
                "is no input of the traced graph",
                where=spec.name,
                hint=hint,
                cause="usage/dimensions",
            )
        for dim, traced_dim in zip(spec.dims, value.shape, strict=True):
            if isinstance(dim, str):
                _assign(names, spec, dim, traced_dim)
    return names


def _assign(names: dict[str, str], spec: InputSpec, dim: str, traced_dim: object) -> None:
    symbol = getattr(traced_dim, "value", None)
    if not isinstance(symbol, str):
        raise UsageError(
            f"the model fixes the dimension {dim!r} at {traced_dim}",
            where=spec.name,
            hint=f"--static {dim}=SIZE fixes it, or make forward independent of the size",
            cause="usage/dimensions",
        )
    if names.setdefault(symbol, dim) != dim:
        raise UsageError(
            f"the model needs the dimensions {names[symbol]!r} and {dim!r} to be equal",
            where=spec.name,
            hint="give them the same name",
            cause="usage/dimensions",
        )


def _values(traced: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    import onnx_ir

    yield from traced.graph.inputs
    yield from traced.graph.outputs
    for node in onnx_ir.traversal.RecursiveGraphIterator(traced.graph):
        yield from node.outputs


def check(model: onnx.ModelProto, inputs: Sequence[InputSpec]) -> None:
    """Compare the inputs of a graph with the declared ones.

    Raises:
        UsageError: an input's dimensions are not the declared ones.
    """
    for spec, found in differences(model, inputs):
        raise UsageError(
            f"has the dimensions {list(found)} in the graph, and {list(spec.dims)} as declared",
            where=spec.name,
            hint="declare the dimensions as the model has them",
            cause="usage/dimensions",
        )


def differences(
    model: onnx.ModelProto, inputs: Sequence[InputSpec]
) -> list[tuple[InputSpec, tuple[int | str, ...]]]:
    """List the declared inputs whose dimensions in the graph are others, with the graph's."""
    found = {value.name: _dims(value) for value in model.graph.input}
    return [
        (spec, found.get(spec.name, ())) for spec in inputs if found.get(spec.name) != spec.dims
    ]


def _dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(
        dim.dim_param if dim.HasField("dim_param") else dim.dim_value
        for dim in value.type.tensor_type.shape.dim
    )
