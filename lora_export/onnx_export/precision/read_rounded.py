"""Rounded weights read back from a graph, for the audit.

With the float32 nodes put back, the graph must be the float32 graph, node by node. Every rounded
weight must be one of its weights. Nothing in the file is left unexplained then. This module shares
only names, and the meaning of ONNX's operators, with the code that made the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_export.onnx_export.precision.grids import LEVEL, Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    from lora_export.onnx_export.precision.products import Use

    Array = NDArray[Any]

_KNOWN_ATTRIBUTES = {"K", "N", "bits", "block_size"}
"""The attributes of MatMulNBits that we write in every file; others change what it computes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A rounded weight as it is stored; its parts may lie in mapped files."""

    shape: tuple[int, int]
    """Of the float32 rows [R, C] that the codes stand for; of a product, R are the outputs."""
    scales: Array
    """float32 [R, blocks]."""
    grid: Grid
    """As the layout of codes and scales shows it."""
    read: Callable[[slice], Array]
    """Computes some of the float32 rows."""


@dataclass(frozen=True, slots=True)
class Raised:
    """A use of a rounded weight."""

    use: Use
    """The float32 node that it replaces."""
    parts: tuple[str, ...]
    """The initializers that hold the weight: codes, scales, zero points."""
    find: Callable[[], Stored]
    """Finds out their layout."""

    @property
    def key(self) -> tuple[str, str]:
        """Return the weight that is rounded, and the form in which it is."""
        return self.use.weight, self.use.form


class Reader:
    """A reader of the uses of rounded weights in a graph.

    Args:
        graph: with rounded weights.
        uses: those of the float32 graph, by the output's name.
        load: returns the values of a tensor of the graph.
        level: the accuracy_level that products in blocks must have; 0 for none.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        uses: Mapping[str, Use],
        load: Callable[[onnx.TensorProto], Array],
        level: int = 0,
    ) -> None:
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._load = load
        self._level = level
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._known = {use.stem: use for use in uses.values()}

    def find(self) -> dict[str, Raised]:
        """Find the uses, by the output of the last node of each."""
        found = (self._raise(node) for node in self._graph.node if node.output)
        return {one.use.output: one for one in found if one is not None}

    def _raise(self, node: onnx.NodeProto) -> Raised | None:
        """Return the use that ends with this node; None where none does.

        A dynamic product and a lookup end with a Mul, a product in blocks is one MatMulNBits.
        """
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
        """Return the use of the weight with these codes, transposed as in the float32 graph."""
        known = self._known.get(codes)
        if known is None or known.kind != kind:
            return None
        return replace(known, data=data, output=output, bias="")

    def _block_product(self, node: onnx.NodeProto) -> Raised | None:
        if len(node.input) != len(("data", "codes", "scales", "zeros")):
            return None  # one with g_idx or a bias, which we do not write
        attributes = {item.name: item.i for item in node.attribute}
        known = _KNOWN_ATTRIBUTES | ({LEVEL} if self._level else set())
        if attributes.keys() != known or attributes.get(LEVEL, 0) != self._level:
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
        """Find MatMulNBits' codes [N, blocks, bytes], scales [N, blocks], packed zero points."""
        import numpy as np

        attributes = {item.name: item.i for item in node.attribute}
        bits, block = attributes["bits"], attributes["block_size"]
        outer, inner = attributes["N"], attributes["K"]
        blocks = -(-inner // block)
        codes, zeros = (self._array(parts[place]).reshape(outer, -1) for place in (0, 2))
        scales = self._array(parts[1]).reshape(outer, blocks)

        def read(part: slice) -> Array:
            code = _unpack(codes[part], bits).reshape(-1, blocks, block).astype(np.float32)
            zero = _unpack(zeros[part], bits)[:, :blocks, None].astype(np.float32)
            values: Array = (code - zero) * scales[part][..., None]
            return values.reshape(len(values), -1)[:, :inner]

        return Stored((outer, inner), scales, Grid(bits, block), read)

    def _columns(self, codes: str, scales: str, zeros: str) -> Stored:
        """Find MatMulInteger's codes [K, N], one scale and one zero point a column."""
        import numpy as np

        columns, scale, zero = self._array(codes).T, self._array(scales), self._array(zeros)

        def read(part: slice) -> Array:
            shifted = columns[part].astype(np.float32) - zero[part].astype(np.float32)[:, None]
            values: Array = shifted * scale[part][:, None]
            return values

        grid = Grid(bits=8 * columns.dtype.itemsize, signed=columns.dtype.kind == "i")
        return Stored(columns.shape, scale[:, None], grid, read)

    def _rows(self, codes: str, scales: str) -> Stored:
        """Find a table's codes [rows, width], scales [rows, 1]."""
        import numpy as np

        rows, scale = self._array(codes), self._array(scales)

        def read(part: slice) -> Array:
            values: Array = rows[part].astype(np.float32) * scale[part]
            return values

        grid = Grid(bits=8 * rows.dtype.itemsize, symmetric=rows.dtype.kind == "i")
        return Stored(rows.shape, scale, grid, read)

    def _array(self, name: str) -> Array:
        return self._load(self._tensors[name])


def _unpack(data: Array, bits: int) -> Array:
    """Unpack codes along the last axis, one a byte."""
    import numpy as np

    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
