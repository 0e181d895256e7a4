"""Fewer nodes for attention masks, where that changes no output for any input or weight.

transformers' exporter sets rows to zero that are masked throughout, in many nodes. The rewrites
rely on two facts only: a boolean's float is 0 or 1, and torch's tracer named equal sizes alike.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from lora_export.onnx_export.file.topology import ONNX_DOMAINS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir

REDUCE_MAX_OPSET = 18
"""From this opset on ReduceMax takes its axes as an input, as ReduceSum does."""


def shorten(traced: onnx_ir.Model) -> None:
    """Apply every rewrite wherever it fits, in place; nodes left without a use stay."""
    graph = traced.graph
    opset = max(traced.opset_imports.get(one, 0) for one in ONNX_DOMAINS)
    masks: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Mul":
            masks |= _choose_mask(graph, node)
        elif node.op_type == "Where":
            _spare_expansion(node)
        elif node.op_type == "Reshape":
            _skip_reshape(node)
    # After the masks are known; before this opset the axes of both nodes are of two forms.
    if opset >= REDUCE_MAX_OPSET:
        for node in list(graph):
            if node.op_type == "Less":
                _take_largest(graph, node, masks)


def _choose_mask(graph: onnx_ir.Graph, node: onnx_ir.Node) -> dict[onnx_ir.Value, onnx_ir.Value]:
    """Replace `Cast(Not(mask)) * c`, c negative, by `Where(mask, -0.0, c)`; return {mask: result}.

    The product of 0 and a negative number is -0.0, and the output keeps that bit.
    """
    for factor, scalar in (node.inputs, reversed(node.inputs)):
        cast = _source(factor, "Cast")
        inverted = _source(cast.inputs[0], "Not") if cast else None
        mask = inverted.inputs[0] if inverted else None
        number = _scalar(scalar)
        # 0 * -inf is NaN, which a Where would not give.
        if mask is None or scalar is None or number is None or not -inf < number < 0:
            continue
        first = next(one for one in graph if one in mask.consumers())
        choice = [mask, _minus_zero(graph, scalar), scalar]
        return {mask: _put(graph, first, node, "Where", choice)}
    return {}


def _take_largest(
    graph: onnx_ir.Graph, node: onnx_ir.Node, masks: Mapping[onnx_ir.Value, onnx_ir.Value]
) -> None:
    """Replace `ReduceSum(Cast(mask)) < 1` by `ReduceMax(Where(mask, -0.0, c)) < -0.0`.

    Both are true for rows in which no position is attended to: all their masks are then negative.
    """
    import onnx_ir

    count = _source(node.inputs[0], "ReduceSum")
    cast = _source(count.inputs[0], "Cast") if count else None
    chosen = masks.get(cast.inputs[0]) if cast and cast.inputs[0] else None
    where = chosen.producer() if chosen else None
    if count is None or where is None or _scalar(node.inputs[1]) != 1.0:
        return
    inputs = [chosen, *count.inputs[1:]]
    largest = onnx_ir.Node("", "ReduceMax", inputs, count.attributes.values())
    _describe(largest, count)
    graph.insert_before(node, largest)
    _put(graph, node, node, "Less", [largest.outputs[0], where.inputs[1]])


def _spare_expansion(node: onnx_ir.Node) -> None:
    """Replace the Expand in `Where(c, x, Expand(scalar, Shape(x)))` by the scalar.

    Where broadcasts it to x's shape.
    """
    for at, other in ((1, 2), (2, 1)):
        expansion = _source(node.inputs[at], "Expand", shared=True)
        shape = _source(expansion.inputs[1], "Shape", shared=True) if expansion else None
        if expansion is None or shape is None or not _is_whole(shape):
            continue
        if shape.inputs[0] is node.inputs[other] and _rank(expansion.inputs[0]) == 0:
            node.replace_input_with(at, expansion.inputs[0])


def _is_whole(shape: onnx_ir.Node) -> bool:
    """Return whether a Shape node gives all sizes of its input."""
    start = shape.attributes.get("start")
    return "end" not in shape.attributes and (start is None or start.as_int() == 0)


def _skip_reshape(node: onnx_ir.Node) -> None:
    """Skip a Reshape to the shape that its input has already, by the names of the sizes."""
    import onnx_ir

    given, result = node.inputs[0], node.outputs[0]
    if given is None or result.is_graph_output() or given.shape is None or result.shape is None:
        return
    known = all(isinstance(dim, int) or dim.value is not None for dim in given.shape)
    if known and given.shape == result.shape:
        onnx_ir.convenience.replace_all_uses_with(result, given)


def _put(
    graph: onnx_ir.Graph,
    before: onnx_ir.Node,
    old: onnx_ir.Node,
    op_type: str,
    inputs: Sequence[onnx_ir.Value | None],
) -> onnx_ir.Value:
    """Put a new node before `before` in place of `old`, with its name; return its output."""
    import onnx_ir

    new = onnx_ir.Node("", op_type, inputs)
    _describe(new, old)
    new.outputs[0].shape = old.outputs[0].shape
    graph.insert_before(before, new)
    onnx_ir.convenience.replace_all_uses_with(old.outputs[0], new.outputs[0])
    graph.remove(old, safe=True)
    return new.outputs[0]


def _describe(new: onnx_ir.Node, old: onnx_ir.Node) -> None:
    """Copy name, output type and metadata: by these a fault is traced to its module."""
    new.name, new.outputs[0].name = old.name, old.outputs[0].name
    new.outputs[0].type = old.outputs[0].type
    new.metadata_props.update(old.metadata_props)


def _minus_zero(graph: onnx_ir.Graph, like: onnx_ir.Value) -> onnx_ir.Value:
    """Return the constant -0.0 of the dtype of `like`, made once a graph."""
    import numpy as np
    import onnx_ir

    name = f"minus_zero_{like.dtype}".lower()
    if name not in graph.initializers:
        kind = like.dtype or onnx_ir.DataType.FLOAT
        tensor = onnx_ir.Tensor(np.array(-0.0, dtype=kind.numpy()), dtype=kind, name=name)
        value = onnx_ir.Value(name=name, type=like.type, shape=like.shape, const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _scalar(value: onnx_ir.Value | None) -> float | None:
    """Return the number that a constant without dimensions holds; None for all else."""
    if value is None or value.const_value is None or not value.is_initializer() or _rank(value):
        return None
    return float(value.const_value.numpy())


def _rank(value: onnx_ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _source(
    value: onnx_ir.Value | None, op_type: str, *, shared: bool = False
) -> onnx_ir.Node | None:
    """Return the node that makes the value, if it is an `op_type` and the value has one use.

    shared: the value may have other uses.
    """
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != op_type or node.domain:
        return None
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return node if shared or alone else None
