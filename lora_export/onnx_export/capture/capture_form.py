"""What a captured graph consists of, and nothing else: a file from the cache is held against it.

The values of constants and the choice of operators cannot be derived without capturing again. Their
proof is the digest of the entry, and that no one but the user can have written it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.onnx_export.file.bindings import KEY, Bindings, hollow
from lora_export.onnx_export.file.external import all_tensors, subgraphs
from lora_export.onnx_export.file.topology import ONNX_DOMAINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx


def capture_fault(model: onnx.ModelProto, bindings: Bindings) -> str:
    """Return what of a graph no capture has, in words; "" for a graph as captures are."""
    return (
        _foreign_part(model)
        or _foreign_operator(model)
        or _unexplained(model, bindings)
        or _unused(model.graph)
    )


def _foreign_part(model: onnx.ModelProto) -> str:
    """Name a part of the format that captures leave empty."""
    graph = model.graph
    parts = {
        "functions": model.functions,
        "training_info": model.training_info,
        "sparse_initializer": graph.sparse_initializer,
        "quantization_annotation": graph.quantization_annotation,
        "a doc_string": model.doc_string or graph.doc_string,
        "metadata": [one for one in model.metadata_props if one.key != KEY],
        "external data": [one for one in all_tensors(model) if one.data_location == one.EXTERNAL],
    }
    return next((name for name, found in parts.items() if found), "")


def _foreign_operator(model: onnx.ModelProto) -> str:
    """Name an operator that ONNX does not define in the graph's own operator set."""
    import onnx

    versions = {entry.domain: entry.version for entry in model.opset_import}
    if not versions.keys() <= ONNX_DOMAINS or len(versions) != 1:
        return f"the operator sets {sorted(versions)}"
    (version,) = versions.values()
    if not 0 < version <= onnx.defs.onnx_opset_version():
        return f"the operator set {version}"
    nodes = list(_nodes(model.graph.node))
    if domains := {node.domain for node in nodes} - ONNX_DOMAINS:
        return f"an operator of {min(domains)}"
    try:
        for name in {node.op_type for node in nodes}:
            onnx.defs.get_schema(name, version, "")
    except onnx.defs.SchemaError:
        return f"an operator that the operator set {version} lacks"
    return ""


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """List nodes with those of their subgraphs."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner.node)


def _unexplained(model: onnx.ModelProto, bindings: Bindings) -> str:
    """Name an initializer that is neither a bound one without data nor a listed constant."""
    bound = {one.initializer for one in bindings.parameters.values()}
    names = [tensor.name for tensor in model.graph.initializer]
    empty = set(hollow(model))
    constants = set(bindings.constants)
    odd = [name for name in names if not (name in constants or (name in bound and name in empty))]
    if odd or len(set(names)) != len(names):
        return f"the initializer {odd[0] if odd else 'of a name that occurs twice'}"
    missing = (bound | constants) - set(names)
    return f"a binding of {min(missing)}, which is no initializer" if missing else ""


def _unused(graph: onnx.GraphProto) -> str:
    """Name a node or an initializer that no output depends on."""
    wanted = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if wanted.isdisjoint(node.output):
            return f"a {node.op_type} that no output depends on"
        for one in _nodes([node]):
            wanted.update(one.input)
        wanted.update(value.name for inner in subgraphs(node) for value in inner.output)
    loose = {tensor.name for tensor in graph.initializer} - wanted
    return f"the initializer {min(loose)} that no output depends on" if loose else ""
