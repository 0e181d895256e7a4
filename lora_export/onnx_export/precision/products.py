"""Finds what a graph does with its weights, where that can be done with rounded ones as well.

A product of activations and a weight comes in three forms, a table is looked up in one. To be
compared whatever their form, `canonical` gives all products one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx

DOMAIN = "lora_export"
UNPACKED = {"DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Gather", "Transpose"}
MATRIX = 2


SUFFIXES = {"product": ".rounded", "turned": ".rounded_turned", "lookup": ".rounded_rows"}


@dataclass(frozen=True, slots=True)
class Use:
    """A node that uses a weight.

    kind: "product" of `data` and the weight, or "lookup" of rows at the indices `data`. weight: the
    initializer's name. shape: of the weight as it is stored. output: of the node. transposed: the
    weight is (out, in). bias: what is added to a product, or "".
    """

    kind: Literal["product", "lookup"]
    weight: str
    shape: tuple[int, int]
    data: str
    output: str
    transposed: bool = False
    bias: str = ""

    @property
    def form(self) -> str:
        """In which direction the weight is rounded; one that is used in both is rounded twice."""
        return "turned" if self.transposed else self.kind

    @property
    def stem(self) -> str:
        """How the parts of the weight, rounded for this use, are called."""
        return f"{self.weight}{SUFFIXES[self.form]}"


def find_uses(graph: onnx.GraphProto, weights: Collection[str]) -> dict[str, Use]:
    """The uses of the float32 matrices among `weights` in the main graph, by the node's output.

    Uses in subgraphs, and by nodes of other kinds, are not found.
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
    attributes = _attributes(node)
    if node.domain not in {"", "ai.onnx"}:
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
    """Whether a Gemm is a product and a sum, and nothing else."""
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

    Nodes go that only unpacked weights, or whose output nothing needs any longer.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        use = uses.get(node.output[0]) if node.output else None
        nodes += [node] if use is None else canonical_nodes(use)
    replace_nodes(graph, nodes)
    drop_unused(graph, UNPACKED)


def canonical_nodes(use: Use) -> list[onnx.NodeProto]:
    """The one form of a use: for a product no operator of ONNX, and never run."""
    from onnx import helper

    if use.kind == "lookup":
        return [helper.make_node("Gather", [use.weight, use.data], [use.output], axis=0)]
    place = f"{use.output}.product" if use.bias else use.output
    product = helper.make_node(
        "Product", [use.data, use.weight], [place], domain=DOMAIN, transposed=int(use.transposed)
    )
    return [product, *bias_nodes(use, place)]


def bias_nodes(use: Use, product: str) -> list[onnx.NodeProto]:
    """The sum of a product and its bias, if it has one."""
    from onnx import helper

    return [helper.make_node("Add", [product, use.bias], [use.output])] if use.bias else []


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Put `nodes`, some of which may be the graph's own, in place of the graph's."""
    from onnx import GraphProto

    kept = GraphProto()
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def drop_unused(graph: onnx.GraphProto, kinds: Collection[str]) -> None:
    """Remove nodes of these kinds whose outputs nothing uses, again and again."""
    while True:
        used = needed(graph)
        kept = [n for n in graph.node if n.op_type not in kinds or used.intersection(n.output)]
        if len(kept) == len(graph.node):
            return
        replace_nodes(graph, kept)


def needed(graph: onnx.GraphProto) -> set[str]:
    """The names of values that a node, a subgraph or the caller uses."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in inner:
                names |= needed(subgraph)
    return names
