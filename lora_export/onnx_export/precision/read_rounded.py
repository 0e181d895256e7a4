"""Turns a graph with rounded weights back into the float32 graph it was made from.

What is left after that must be the float32 graph itself, node by node, and every rounded weight
must be one of its weights: so nothing in a lowered file can be unexplained. Only names and the
meaning of ONNX's operators are shared with the code that made the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_export.onnx_export.precision.grids import Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    from lora_export.onnx_export.precision.products import Use

    Array = NDArray[Any]

_MADE = {"K", "N", "bits", "block_size"}
"""The attributes of MatMulNBits that a file of ours has; others change what is computed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A rounded weight as it is stored.

    values: float32 rows [R, C], which the codes stand for; of a product, R are the outputs.
    scales: float32 [R, blocks]. grid: what their layout says.
    """

    values: Array
    scales: Array
    grid: Grid


@dataclass(frozen=True, slots=True)
class Raised:
    """A use of a rounded weight.

    use: the float32 node it stands for. parts: the initializers that hold the weight: codes,
    scales, zero points. read: reads them.
    """

    use: Use
    parts: tuple[str, ...]
    read: Callable[[], Stored]

    @property
    def key(self) -> tuple[str, str]:
        """What is rounded, and in which direction."""
        return self.use.weight, self.use.form


class Reader:
    """Reads the uses of rounded weights out of a graph.

    Args:
        graph: the lowered one, with its tensors in memory.
        uses: those of the float32 graph, by the output's name.
    """

    def __init__(self, graph: onnx.GraphProto, uses: Mapping[str, Use]) -> None:
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._known = {use.stem: use for use in uses.values()}

    def find(self) -> dict[str, Raised]:
        """The uses by the output of the node that ends each: a product, or a lookup."""
        found = (self._raise(node) for node in self._graph.node if node.output)
        return {one.use.output: one for one in found if one is not None}

    def _raise(self, node: onnx.NodeProto) -> Raised | None:
        if node.op_type == "MatMulNBits":
            return self._block_product(node)
        if node.op_type != "Mul":
            return None
        left, right = (self._producers.get(name) for name in node.input)
        if left is None or right is None or left.op_type != "Cast":
            return None
        source = self._producers.get(left.input[0])
        if source is not None and source.op_type == "MatMulInteger":
            return self._integer_product(node, source, right)
        if source is not None and source.op_type == "Gather":
            return self._lookup(node, source, right)
        return None

    def _use(self, codes: str, kind: str, data: str, output: str) -> Use | None:
        """The use of the weight whose codes these are, in the orientation of the float32 graph."""
        known = self._known.get(codes)
        if known is None or known.kind != kind:
            return None
        return replace(known, data=data, output=output, bias="")

    def _block_product(self, node: onnx.NodeProto) -> Raised | None:
        if len(node.input) != len(("data", "codes", "scales", "zeros")):
            return None  # with an order of groups, or a bias: not of our making
        if {item.name for item in node.attribute} != _MADE:
            return None
        data, *parts = node.input
        use = self._use(parts[0], "product", data, node.output[0])
        return None if use is None else Raised(use, (*parts,), lambda: self._blocks(node, parts))

    def _integer_product(
        self, node: onnx.NodeProto, product: onnx.NodeProto, scale: onnx.NodeProto
    ) -> Raised | None:
        given = self._producers.get(product.input[0])
        if given is None or given.op_type != "DynamicQuantizeLinear" or scale.op_type != "Mul":
            return None
        codes, scales, zeros = product.input[1], scale.input[1], product.input[3]
        if [product.input[0], scale.input[0], product.input[2]] != list(given.output):
            return None
        use = self._use(codes, "product", given.input[0], node.output[0])
        parts = (codes, scales, zeros)
        return None if use is None else Raised(use, parts, lambda: self._columns(*parts))

    def _lookup(
        self, node: onnx.NodeProto, codes: onnx.NodeProto, scales: onnx.NodeProto
    ) -> Raised | None:
        if scales.op_type != "Gather" or scales.input[1] != codes.input[1]:
            return None
        if any(item.i for gather in (codes, scales) for item in gather.attribute):
            return None
        use = self._use(codes.input[0], "lookup", codes.input[1], node.output[0])
        parts = (codes.input[0], scales.input[0])
        return None if use is None else Raised(use, parts, lambda: self._rows(*parts))

    def _blocks(self, node: onnx.NodeProto, parts: Sequence[str]) -> Stored:
        """MatMulNBits: codes [N, blocks, bytes], scales [N, blocks], zero points packed as well."""
        import numpy as np

        attributes = {item.name: item.i for item in node.attribute}
        bits, block = attributes["bits"], attributes["block_size"]
        outer, inner = attributes["N"], attributes["K"]
        blocks = -(-inner // block)
        codes = _unpack(self._array(parts[0]), bits).reshape(outer, blocks, block)
        scales = self._array(parts[1]).reshape(outer, blocks)
        zeros = _unpack(self._array(parts[2]), bits).reshape(outer, -1)[:, :blocks, None]
        values = (codes.astype(np.float32) - zeros.astype(np.float32)) * scales[..., None]
        rows = values.reshape(outer, -1)[:, :inner]
        return Stored(rows, scales, Grid(bits, block))

    def _columns(self, codes: str, scales: str, zeros: str) -> Stored:
        """MatMulInteger: codes [K, N], one scale and one zero point a column."""
        import numpy as np

        held, scale, zero = self._array(codes).T, self._array(scales), self._array(zeros)
        values = (held.astype(np.float32) - zero.astype(np.float32)[:, None]) * scale[:, None]
        return Stored(values, scale[:, None], _grid(held))

    def _rows(self, codes: str, scales: str) -> Stored:
        import numpy as np

        held, scale = self._array(codes), self._array(scales)
        return Stored(held.astype(np.float32) * scale, scale, _grid(held))

    def _array(self, name: str) -> Array:
        from onnx import numpy_helper

        return numpy_helper.to_array(self._tensors[name])


def _unpack(data: Array, bits: int) -> Array:
    """Codes along the last axis, one a byte."""
    import numpy as np

    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def _grid(codes: Array) -> Grid:
    """Of codes with one scale a row."""
    return Grid(bits=8 * codes.dtype.itemsize, symmetric=codes.dtype.kind == "i")
