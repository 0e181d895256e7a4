"""A float32 graph that runs on the weights of a checkpoint, without a float32 copy of them.

A file in a lower precision is compared with the float32 graph. That graph is run only, and not
published. So its initializers are byte ranges of the checkpoint's own files, in their dtype and
their axes, and nodes cast and turn them while the graph runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from lora_export.onnx_export.file.bindings import place_weights
from lora_export.onnx_export.file.external import refer, subgraphs
from lora_export.onnx_export.file.weight_blocks import Cast, blocks, dtype_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx

    from lora_export.onnx_export.file.bindings import Placed
    from lora_export.onnx_export.file.weight_blocks import Weight
    from lora_export.records import TensorRef

_SUFFIX = ".stored"
"""What is added to an initializer's name where nodes make it of the stored weight."""


def save_linked(
    graph: onnx.ModelProto,
    path: Path,
    weights: Mapping[str, Weight],
    stored: Mapping[str, TensorRef],
) -> None:
    """Write the graph with references to weights that lie in files beside it.

    A weight that no stored tensor holds as it is, such as a stack of experts, is copied in its
    stored dtype into one more file, `<name>.data`.

    Args:
        graph: as captured. It is not changed.
        path: the `.onnx` file, which must not exist yet.
        weights: parameter or buffer name -> value, as for `bindings.place_weights`.
        stored: tensors of files in the same folder, by their names. They are compared with the
            weights, byte by byte, before they are referred to.

    Raises:
        FitError: see bindings.place_weights.
    """
    import onnx

    placed = place_weights(graph, weights)
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.initializer[:], model.graph.node[:]
    owners = {id(weight): name for name, weight in weights.items()}
    links = _Links(path, stored)
    made: dict[str, list[onnx.NodeProto]] = {}
    for name, one in placed.items():
        if one.tensor is None:
            model.graph.initializer.add().CopyFrom(one.slot)
        else:
            nodes = _nodes(name, one)
            reference = links.reference(owners[id(one.tensor)], one.tensor)
            reference.name = f"{name}{_SUFFIX}" if nodes else name
            model.graph.initializer.append(reference)
            made[name] = nodes
    model.graph.node.extend(_in_order(graph.graph.node, made))
    with path.open("xb") as file:
        file.write(model.SerializeToString(deterministic=True))


def _nodes(name: str, placed: Placed) -> list[onnx.NodeProto]:
    """Make the nodes from the stored weight to the initializer's value; none where it is that."""
    from onnx import helper

    steps: list[tuple[str, dict[str, Any]]] = []
    if isinstance(placed.tensor, Cast):
        steps.append(("Cast", {"to": placed.slot.data_type}))
    if placed.binding.perm:
        steps.append(("Transpose", {"perm": list(placed.binding.perm)}))
    values = [f"{name}{_SUFFIX}", *(f"{name}.{kind}" for kind, _ in steps[:-1]), name]
    return [
        helper.make_node(kind, [values[place]], [values[place + 1]], **more)
        for place, (kind, more) in enumerate(steps)
    ]


def _in_order(
    nodes: Sequence[onnx.NodeProto], made: dict[str, list[onnx.NodeProto]]
) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, those that make a weight in front of its first user.

    ONNX Runtime frees a value after its last user. In front of all others, they would live at once.
    """
    for node in nodes:
        for name in _taken(node):
            yield from made.pop(name, ())
        yield node


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for inner in subgraphs(node):
        yield from (value.name for value in inner.output)
        for each in inner.node:
            yield from _taken(each)


@dataclass
class _Links:
    """Makes references to stored tensors, and copies the weights that have none."""

    path: Path
    stored: Mapping[str, TensorRef]
    _taken: set[str] = field(default_factory=set)

    def reference(self, name: str, weight: Weight) -> onnx.TensorProto:
        """Return a tensor whose data is in a file beside the model."""
        import onnx
        from onnx import helper

        inner: Weight = weight.tensor if isinstance(weight, Cast) else weight
        kind = helper.np_dtype_to_tensor_dtype(dtype_of(inner))
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=tuple(inner.shape))
        size = prod(inner.shape) * dtype_of(inner).itemsize
        for ref in self._candidates(name, size):
            if _holds(ref, inner):
                self._taken.add(ref.spec.name)
                return refer(tensor, ref.file.name, ref.offset, size)
        data = self.path.with_name(f"{self.path.name}.data")
        with data.open("ab") as file:
            offset = file.tell()
            for block in blocks(inner):
                file.write(block.reshape(-1).view("u1").data)
        return refer(tensor, data.name, offset, size)

    def _candidates(self, name: str, size: int) -> Iterator[TensorRef]:
        """Yield stored tensors of the size whose names end like the weight's, or the reverse."""
        for known, ref in self.stored.items():
            near = f".{name}".endswith(f".{known}") or f".{known}".endswith(f".{name}")
            beside = ref.file.parent == self.path.parent
            if near and beside and ref.length == size and known not in self._taken:
                yield ref


def _holds(ref: TensorRef, weight: Weight) -> bool:
    """Return whether the bytes of a stored tensor are those of the weight."""
    import numpy as np

    if ref.strides is not None or not ref.length:
        return False
    data = np.memmap(ref.file, np.uint8, "r", ref.offset, (ref.length,))
    at = 0
    for block in blocks(weight):
        part = block.reshape(-1).view(np.uint8)
        if not np.array_equal(data[at : at + part.size], part):
            return False
        at += part.size
    return at == ref.length
