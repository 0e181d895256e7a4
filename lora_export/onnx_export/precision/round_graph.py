"""A graph with rounded weights, made from one in float32."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError
from lora_export.onnx_export.file.bindings import Bindings, read_bindings, write_bindings
from lora_export.onnx_export.precision import products
from lora_export.onnx_export.precision.grids import KEY as PRECISION_KEY
from lora_export.onnx_export.precision.grids import TABLE
from lora_export.onnx_export.precision.quantize import pack, quantize_rows

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from lora_export.onnx_export.precision.grids import Grid, Precision
    from lora_export.onnx_export.precision.products import Use

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
SMALLEST = 64
"""Elements below which a weight stays: rounding saves less than its nodes take."""
SHORTEST = 64
"""Rows below which a table stays. A row of token types is added at every position: its rounding
does not average out. On MiniLM it makes twelve times the error of the table of words."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the initializers that hold a rounded weight."""

    codes: str
    scales: str
    zeros: str
    """The zero points; "" on a symmetric grid."""


def lowered_names(use: Use) -> Names:
    """Name the parts of the weight that is rounded for this use."""
    zeros = f"{use.stem}.zero_point" if use.kind == "product" else ""
    return Names(use.stem, f"{use.stem}.scale", zeros)


def lower(model: onnx.ModelProto, precision: Precision) -> None:
    """Round every weight that only products and lookups use, in place.

    They are replaced by nodes that take the rounded weight.

    Args:
        model: a float32 graph with bindings and its weights in memory. Products of activations
            with a weight (MatMul, Gemm, MatMul with a transposed weight) and lookups in a table
            are changed; convolutions, biases and normalisations stay as they are.
        precision: one that rounds products.

    Raises:
        FitError: there is no weight to be rounded, so that the file would be the float32 one.
    """
    graph = model.graph
    bindings = read_bindings(model)
    weights = {b.initializer for b in bindings.parameters.values() if b.kind == "parameter"}
    uses = {
        output: use
        for output, use in products.find_uses(graph, weights).items()
        if _is_worth_it(use)
    }
    if not uses:
        raise _nothing_to_round(model, precision)
    _Lowering(model, precision, uses).run()
    # A weight with another use beside its products is needed still: it stays, in float32 as well.
    present = products.needed(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in present]
    _keep_initializers(graph, kept)
    left = {name: b for name, b in bindings.parameters.items() if b.initializer in present}
    write_bindings(model, Bindings(left, bindings.unused, bindings.constants))
    model.metadata_props.add(key=PRECISION_KEY, value=precision.name)


def _is_worth_it(use: Use) -> bool:
    rows, columns = use.shape
    return rows * columns >= SMALLEST and (use.kind == "product" or rows >= SHORTEST)


def _nothing_to_round(model: onnx.ModelProto, precision: Precision) -> FitError:
    """Make the error of a graph without products and lookups of weights."""
    kinds = Counter(node.op_type for node in model.graph.node)
    weighty = [f"{kinds[kind]} {kind}" for kind in ("Conv", "MatMul", "Gemm") if kinds[kind]]
    return FitError(
        f"no weight of this graph can be quantised: {precision.name} rounds the weights of linear "
        f"layers and embeddings, and the graph has {' and '.join(weighty) or 'none'} without such",
        where=f"--precision {precision.name}",
        hint="--precision fp16 halves every weight, those of convolutions as well",
    )


def _keep_initializers(graph: onnx.GraphProto, kept: list[onnx.TensorProto]) -> None:
    from onnx import GraphProto

    fresh = GraphProto()
    fresh.initializer.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(fresh.initializer)


class _Lowering:
    """One pass over the nodes; every weight and every activation is rounded once in a form."""

    def __init__(self, model: onnx.ModelProto, precision: Precision, uses: dict[str, Use]) -> None:
        self._model = model
        self._graph = model.graph
        self._precision = precision
        self._uses = uses
        self._weights = {t.name: t for t in model.graph.initializer}
        self._rounded: set[str] = set()
        self._dynamic: set[str] = set()

    def run(self) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            use = self._uses.get(node.output[0]) if node.output else None
            if use is None:
                nodes.append(node)
            elif use.kind == "lookup":
                nodes += self._lookup(use)
            else:
                nodes += self._product(use)
        products.replace_nodes(self._graph, nodes)
        products.drop_unused(self._graph, {"Transpose"})
        if not self._precision.dynamic:
            self._import_microsoft()

    def _import_microsoft(self) -> None:
        if all(entry.domain != MICROSOFT for entry in self._model.opset_import):
            self._model.opset_import.add(domain=MICROSOFT, version=1)

    def _lookup(self, use: Use) -> list[onnx.NodeProto]:
        """Make the nodes of float(codes[ids]) * scales[ids]."""
        from onnx import TensorProto, helper

        names, out = lowered_names(use), use.output
        if names.codes not in self._rounded:
            found = quantize_rows(self._array(use.weight), TABLE)
            self._add(names.codes, found.codes.reshape(use.shape))
            self._add(names.scales, found.scales)
            self._rounded.add(names.codes)
        return [
            helper.make_node("Gather", [names.codes, use.data], [f"{out}.codes"], axis=0),
            helper.make_node("Gather", [names.scales, use.data], [f"{out}.scale"], axis=0),
            helper.make_node("Cast", [f"{out}.codes"], [f"{out}.float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out]),
        ]

    def _product(self, use: Use) -> list[onnx.NodeProto]:
        grid = self._precision.product
        if grid is None:
            raise AssertionError(self._precision.name)
        names = lowered_names(use)
        if names.codes not in self._rounded:
            self._round(use, grid, names)
            self._rounded.add(names.codes)
        place = f"{use.output}.product" if use.bias else use.output
        if self._precision.dynamic:
            nodes = self._integer_product(use, names, place)
        else:
            nodes = [self._block_product(use, grid, names, place)]
        return [*nodes, *products.bias_nodes(use, place)]

    def _round(self, use: Use, grid: Grid, names: Names) -> None:
        weight = self._array(use.weight)
        found = quantize_rows(weight if use.transposed else weight.T, grid)
        if found.zeros is None:
            raise AssertionError(grid)
        if self._precision.dynamic:
            self._add(names.codes, found.codes.reshape(len(found.codes), -1).T)
            self._add(names.scales, found.scales[:, 0])
            self._add(names.zeros, found.zeros[:, 0])
        else:
            self._add(names.codes, pack(found.codes, grid.bits))
            self._add(names.scales, found.scales)
            self._add(names.zeros, pack(found.zeros, grid.bits))

    def _integer_product(self, use: Use, names: Names, place: str) -> list[onnx.NodeProto]:
        """Make the nodes of the product of both sides' codes in integers, times both scales."""
        from onnx import TensorProto, helper

        data = [f"{use.data}.{part}" for part in ("codes", "scale", "zero_point")]
        nodes = []
        if use.data not in self._dynamic:
            self._dynamic.add(use.data)
            nodes.append(helper.make_node("DynamicQuantizeLinear", [use.data], data))
        return [
            *nodes,
            helper.make_node(
                "MatMulInteger", [data[0], names.codes, data[2], names.zeros], [f"{place}.int32"]
            ),
            helper.make_node("Cast", [f"{place}.int32"], [f"{place}.float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [data[1], names.scales], [f"{place}.scale"]),
            helper.make_node("Mul", [f"{place}.float", f"{place}.scale"], [place]),
        ]

    def _block_product(self, use: Use, grid: Grid, names: Names, place: str) -> onnx.NodeProto:
        from onnx import helper

        rows, columns = use.shape
        inner, outer = (columns, rows) if use.transposed else (rows, columns)
        return helper.make_node(
            "MatMulNBits",
            [use.data, names.codes, names.scales, names.zeros],
            [place],
            domain=MICROSOFT,
            K=inner,
            N=outer,
            bits=grid.bits,
            block_size=grid.block,
        )

    def _array(self, name: str) -> NDArray[Any]:
        from onnx import numpy_helper

        return numpy_helper.to_array(self._weights[name])

    def _add(self, name: str, array: NDArray[Any]) -> None:
        import numpy as np
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self._graph.initializer.append(tensor)
