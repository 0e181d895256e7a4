"""The uses of weights in a graph that also work with rounded weights: products and lookups.

A product of activations and a weight has three forms, a lookup in a table has one. `canonical`
gives all products one form, by which graphs are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_export.onnx_export.file.external import subgraphs
from lora_export.onnx_export.file.topology import ONNX_DOMAINS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx

DOMAIN = "lora_export"
"""The domain of the operator Product, which is compared and never run."""
UNPACKED = {"DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Gather", "Transpose"}
"""Operators that a rounded weight takes around its product or lookup."""
MATRIX = 2

SUFFIXES = {"product": ".rounded", "turned": ".rounded_turned", "lookup": ".rounded_rows"}
"""What is added to a weight's name, by the form in which it is rounded."""


@dataclass(frozen=True, slots=True)
class Use:
    """A node that uses a weight."""

    kind: Literal["product", "lookup"]
    """A product of `data` and the weight, or a lookup of its rows at the indices `data`."""
    weight: str
    """The initializer's name."""
    shape: tuple[int, int]
    """Of the weight as it is stored."""
    data: str
    """The node's other input."""
    output: str
    """The node's output."""
    transposed: bool = False
    """Whether the weight is stored (out, in)."""
    bias: str = ""
    """What is added to a product, or ""."""

    @property
    def form(self) -> str:
        """Return the form in which the weight is rounded: by rows, by columns, or as a table.

        A weight that is used in two forms is rounded twice.
        """
        return "turned" if self.transposed else self.kind

    @property
    def stem(self) -> str:
        """Return what the names of the rounded weight's parts begin with."""
        return f"{self.weight}{SUFFIXES[self.form]}"


def find_uses(graph: onnx.GraphProto, weights: Collection[str]) -> dict[str, Use]:
    """Find the uses of the float32 matrices among `weights`, by the node's output.

    Uses in subgraphs, and by nodes of other kinds, are not found: those weights stay as they are.
    """
    from onnx import TensorProto

    shapes = {
        tensor.name: (tensor.dims[0], tensor.dims[1])
        for tensor in graph.initializer
        if tensor.name in weights
        and tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == MATRIX
    }
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose"
        and node.input[0] in shapes
        and _attributes(node).get("perm") in {None, (1, 0)}
    }
    found = (_use(node, shapes, turned) for node in graph.node)
    return {use.output: use for use in found if use is not None}


def _use(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int, int]], turned: Mapping[str, str]
) -> Use | None:
    """Return the use that a node makes of a weight; None where it makes none.

    turned: the weight of every transposed weight, by the Transpose's output.
    """
    attributes = _attributes(node)
    if node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type == "Gather" and node.input[0] in shapes and not attributes.get("axis"):
        table = node.input[0]
        return Use("lookup", table, shapes[table], node.input[1], node.output[0])
    if node.op_type not in {"MatMul", "Gemm"} or not _is_plain(attributes):
        return None
    second = node.input[1]
    weight = turned.get(second, second)
    if weight not in shapes or node.input[0] in {weight, second}:
        return None
    transposed = (weight != second) != bool(attributes.get("transB"))
    bias = node.input[2] if len(node.input) > MATRIX else ""
    shape, data, output = shapes[weight], node.input[0], node.output[0]
    return Use("product", weight, shape, data, output, transposed, bias)


def _is_plain(attributes: Mapping[str, object]) -> bool:
    """Return whether a Gemm is a product and a sum, and nothing else."""
    return (
        attributes.get("alpha", 1.0) == 1.0
        and attributes.get("beta", 1.0) == 1.0
        and not attributes.get("transA")
    )


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    from onnx import helper

    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def canonical(graph: onnx.GraphProto, uses: Mapping[str, Use]) -> None:
    """Give every one of `uses` one form, in place: Gather, or Product and an Add of the bias.

    Nodes that only unpacked a weight are removed: nothing needs their outputs any longer.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        use = uses.get(node.output[0]) if node.output else None
        nodes += [node] if use is None else canonical_nodes(use)
    replace_nodes(graph, nodes)
    drop_unused(graph, UNPACKED)


def canonical_nodes(use: Use) -> list[onnx.NodeProto]:
    """Make the one form of a use: a Gather, or a Product, which is no operator of ONNX."""
    from onnx import helper

    if use.kind == "lookup":
        return [helper.make_node("Gather", [use.weight, use.data], [use.output], axis=0)]
    place = f"{use.output}.product" if use.bias else use.output
    product = helper.make_node(
        "Product", [use.data, use.weight], [place], domain=DOMAIN, transposed=int(use.transposed)
    )
    return [product, *bias_nodes(use, place)]


def bias_nodes(use: Use, product: str) -> list[onnx.NodeProto]:
    """Make the Add of a product and its bias; none without a bias."""
    from onnx import helper

    return [helper.make_node("Add", [product, use.bias], [use.output])] if use.bias else []


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace the graph's nodes by `nodes`, some of which may be the graph's own, in place."""
    from onnx import GraphProto

    kept = GraphProto()  # a copy first: `del` frees the graph's own nodes
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def drop_unused(graph: onnx.GraphProto, kinds: Collection[str]) -> None:
    """Remove nodes of these kinds whose outputs nothing uses, until there is none, in place."""
    while True:
        used = needed(graph)
        kept = [n for n in graph.node if n.op_type not in kinds or used.intersection(n.output)]
        if len(kept) == len(graph.node):
            return
        replace_nodes(graph, kept)


def needed(graph: onnx.GraphProto) -> set[str]:
    """List the names of values that a node, a subgraph or the caller uses."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for subgraph in subgraphs(node):
            names |= needed(subgraph)
    return names
