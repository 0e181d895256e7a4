"""The computation of a graph, apart from the values of its weights, as one hash.

Two files of one topology run the same operators: a merged model costs exactly what its base costs.
A measured latency cannot show that.
"""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.errors import InputError
from lora_export.onnx_export.file.bindings import KEY, element_dtype, read_bindings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping, Sequence

    import onnx

ONNX_DOMAINS = frozenset({"", "ai.onnx"})
"""Both names of the domain of ONNX's own operators."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The size of a graph and its canonical hash."""

    nodes: int
    """Of the main graph."""
    initializers: int
    """Of the main graph."""
    hash: str
    """SHA-256, 64 hex digits; see `describe`."""


def describe(model: onnx.ModelProto) -> Topology:
    """Count and hash a graph.

    The hash covers inputs, outputs, every node, opsets and initializers:

    - inputs by dtype and dimensions; names of dimensions count by order of first mention.
    - nodes by operator, attributes, subgraphs, and what their inputs are made of.
    - initializers bound to a parameter by the parameter's name, dtype and shape.
    - other float initializers by dtype and shape; in a graph with bindings by value as well.
    - all other initializers by value.

    It does not depend on names of nodes and values, nor on the order of nodes.

    Raises:
        InputError: a node uses a value that nothing produces; the bindings are damaged.
    """
    graph = model.graph
    has_bindings = any(entry.key == KEY for entry in model.metadata_props)
    owners = _owners(model) if has_bindings else {}
    values = {
        tensor.name: _initializer(tensor, owners.get(tensor.name), by_value=has_bindings)
        for tensor in graph.initializer
    }
    nodes = _hash_graph(graph, values)
    outputs = [_lookup(values, output.name) for output in graph.output]
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    functions = sorted(_function(function) for function in model.functions)
    digest = _digest(_signature(graph), nodes, outputs, opsets, functions)
    return Topology(len(graph.node), len(graph.initializer), digest)


def _owners(model: onnx.ModelProto) -> dict[str, str]:
    """Map initializers to the sorted names and permutations of the parameters they hold."""
    owners: dict[str, list[str]] = {}
    for name, binding in read_bindings(model).parameters.items():
        owners.setdefault(binding.initializer, []).append(f"{name}{list(binding.perm)}")
    return {initializer: " ".join(sorted(names)) for initializer, names in owners.items()}


def _initializer(tensor: onnx.TensorProto, owner: str | None, *, by_value: bool) -> str:
    dtype = element_dtype(tensor)
    shape = list(tensor.dims)
    if owner is not None:
        return _digest("weight", owner, str(dtype), shape)
    if not by_value and dtype.kind in "fV":
        return _digest("float", str(dtype), shape)
    return _digest("constant", str(dtype), shape, _content(tensor))


def _content(tensor: onnx.TensorProto) -> str:
    """Return the digest of a tensor's elements, which does not depend on how they are stored.

    Raises:
        InputError: the elements lie in another file.
    """
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        raise InputError(
            "lies in another file: load the external data first",
            where=tensor.name,
            cause="input/onnx-file",
        )
    return hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()


def _hash_graph(graph: onnx.GraphProto, values: MutableMapping[str, str]) -> list[str]:
    """Hash all nodes in topological order, adding what they produce to `values`."""
    for place, value in enumerate(graph.input):
        values.setdefault(value.name, _digest("input", place))
    hashes = []
    for node in graph.node:
        digest = _hash_node(node, values)
        hashes.append(digest)
        for place, name in enumerate(node.output):
            values[name] = _digest(digest, place)
    return sorted(hashes)


def _hash_node(node: onnx.NodeProto, values: MutableMapping[str, str]) -> str:
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    return _digest(
        domain,
        node.op_type,
        sorted((item.name, _attribute(item, values)) for item in node.attribute),
        [_lookup(values, name) for name in node.input],
        [bool(name) for name in node.output],
    )


def _attribute(item: onnx.AttributeProto, outer: MutableMapping[str, str]) -> str:
    from onnx import AttributeProto

    if item.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS}:
        graphs = [item.g] if item.type == AttributeProto.GRAPH else list(item.graphs)
        return _digest(*(_subgraph(graph, outer) for graph in graphs))
    if item.type == AttributeProto.TENSOR:
        return _digest(list(item.t.dims), item.t.data_type, _content(item.t))
    bare = AttributeProto()
    bare.CopyFrom(item)
    bare.doc_string = ""
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _subgraph(graph: onnx.GraphProto, outer: MutableMapping[str, str]) -> str:
    # A chain and no copy: a graph may have as many subgraphs as values.
    values = ChainMap({}, outer)
    for tensor in graph.initializer:
        values[tensor.name] = _initializer(tensor, None, by_value=True)
    for place, value in enumerate(graph.input):
        values[value.name] = _digest("subgraph input", place)
    nodes = _hash_graph(graph, values)
    return _digest(nodes, [_lookup(values, value.name) for value in graph.output])


def _function(function: onnx.FunctionProto) -> str:
    values = {name: _digest("function input", place) for place, name in enumerate(function.input)}
    hashes = []
    for node in function.node:
        hashes.append(_hash_node(node, values))
        values.update({name: _digest(hashes[-1], at) for at, name in enumerate(node.output)})
    outputs = [_lookup(values, name) for name in function.output]
    return _digest(function.domain, function.name, sorted(hashes), outputs)


def _lookup(values: Mapping[str, str], name: str) -> str:
    """Return the hash of a value; an omitted optional input has the empty name.

    Raises:
        InputError: nothing has produced the value yet.
    """
    if not name:
        return ""
    if name not in values:
        raise InputError(
            "is used before anything in the graph produces it", where=name, cause="input/onnx-file"
        )
    return values[name]


def _signature(graph: onnx.GraphProto) -> list[object]:
    """Return dtype and dimensions of the inputs, dtype and rank of the outputs."""
    places: dict[str, str] = {}
    inputs = [
        [
            value.type.tensor_type.elem_type,
            [
                places.setdefault(dim.dim_param, f"dynamic {len(places)}")
                if dim.HasField("dim_param")
                else dim.dim_value
                for dim in value.type.tensor_type.shape.dim
            ],
        ]
        for value in graph.input
    ]
    outputs = [_type_and_rank(graph.output)]
    return [inputs, outputs]


def _type_and_rank(values: Iterable[onnx.ValueInfoProto]) -> list[Sequence[int]]:
    return [
        (value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
        for value in values
    ]


def _digest(*parts: object) -> str:
    text = json.dumps(parts, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
