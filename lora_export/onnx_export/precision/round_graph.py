"""A graph with rounded weights, made from one in float32."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lora_export.errors import FitError
from lora_export.onnx_export.file.bindings import (
    Bindings,
    matrices_of,
    read_bindings,
    write_bindings,
)
from lora_export.onnx_export.precision import products
from lora_export.onnx_export.precision.grids import KEY as PRECISION_KEY
from lora_export.onnx_export.precision.grids import LEVEL, TABLE
from lora_export.onnx_export.precision.quantize import RoundedRows
from lora_export.onnx_export.precision.rounded_parts import (
    Names,
    block_parts,
    column_parts,
    table_parts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from lora_export.onnx_export.file.weight_blocks import Made, Matrix, Weight
    from lora_export.onnx_export.precision.grids import Grid, Precision
    from lora_export.onnx_export.precision.products import Use

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
SMALLEST = 64
"""Elements below which a weight stays: rounding saves less than its nodes take."""
SHORTEST = 64
"""Rows below which a table stays. A row of token types is added at every position: its rounding
does not average out. On MiniLM it makes twelve times the error of the table of words."""


def lowered_names(use: Use) -> Names:
    """Name the parts of the weight that is rounded for this use."""
    zeros = f"{use.stem}.zero_point" if use.kind == "product" else ""
    return Names(use.stem, f"{use.stem}.scale", zeros)


def lower(
    model: onnx.ModelProto, precision: Precision, weights: Mapping[str, Weight]
) -> tuple[dict[str, Weight], dict[str, Made]]:
    """Round every weight that only products and lookups use; the graph is changed in place.

    They are replaced by nodes that take the rounded weight. It is computed when it is written.

    Args:
        model: a float32 graph with bindings, whose bound initializers need no data. Products of
            activations with a weight (MatMul, Gemm, MatMul with a transposed weight) and lookups in
            a table are changed; convolutions, biases and normalisations stay as they are.
        precision: one that rounds products.
        weights: parameter or buffer name -> value, as for `bindings.place_weights`.

    Returns:
        The weights that are left as they are, and the initializers of the rounded ones.

    Raises:
        FitError: there is no weight to be rounded, so that the file would be the float32 one.
    """
    graph = model.graph
    bindings = read_bindings(model)
    names = {b.initializer for b in bindings.parameters.values() if b.kind == "parameter"}
    uses = {
        output: use for output, use in products.find_uses(graph, names).items() if _is_worth_it(use)
    }
    if not uses:
        raise _nothing_to_round(model, precision)
    matrices = matrices_of(model, weights, {use.weight for use in uses.values()})
    made = _Lowering(model, precision, uses, matrices).run()
    # A weight with another use beside its products is needed still: it stays, in float32 as well.
    present = products.needed(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in present]
    _keep_initializers(graph, kept)
    left = {name: b for name, b in bindings.parameters.items() if b.initializer in present}
    write_bindings(model, Bindings(left, bindings.unused, bindings.constants))
    model.metadata_props.add(key=PRECISION_KEY, value=precision.name)
    return {name: weight for name, weight in weights.items() if name in left}, made


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
        cause="fit/nothing-to-round",
    )


def _keep_initializers(graph: onnx.GraphProto, kept: list[onnx.TensorProto]) -> None:
    from onnx import GraphProto

    fresh = GraphProto()
    fresh.initializer.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(fresh.initializer)


class _Lowering:
    """One pass over the nodes; every weight and every activation is rounded once in a form."""

    def __init__(
        self,
        model: onnx.ModelProto,
        precision: Precision,
        uses: dict[str, Use],
        matrices: Mapping[str, Matrix],
    ) -> None:
        self._model = model
        self._graph = model.graph
        self._precision = precision
        self._uses = uses
        self._matrices = matrices
        self._made: dict[str, Made] = {}
        self._dynamic: set[str] = set()

    def run(self) -> dict[str, Made]:
        """Replace the nodes; return the values of the new initializers."""
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
        return self._made

    def _import_microsoft(self) -> None:
        if all(entry.domain != MICROSOFT for entry in self._model.opset_import):
            self._model.opset_import.add(domain=MICROSOFT, version=1)

    def _lookup(self, use: Use) -> list[onnx.NodeProto]:
        """Make the nodes of float(codes[ids]) * scales[ids]."""
        from onnx import TensorProto, helper

        names, out = lowered_names(use), use.output
        if names.codes not in self._made:
            self._add(table_parts(names, RoundedRows(self._matrices[use.weight], TABLE)))
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
        if names.codes not in self._made:
            matrix = self._matrices[use.weight]
            rounded = RoundedRows(matrix if use.transposed else matrix.T, grid)
            whole = self._precision.dynamic
            self._add(column_parts(names, rounded) if whole else block_parts(names, rounded))
        place = f"{use.output}.product" if use.bias else use.output
        if self._precision.dynamic:
            nodes = self._integer_product(use, names, place)
        else:
            nodes = [self._block_product(use, grid, names, place)]
        return [*nodes, *products.bias_nodes(use, place)]

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
        node = helper.make_node(
            "MatMulNBits",
            [use.data, names.codes, names.scales, names.zeros],
            [place],
            domain=MICROSOFT,
            K=inner,
            N=outer,
            bits=grid.bits,
            block_size=grid.block,
        )
        if self._precision.level:
            node.attribute.append(helper.make_attribute(LEVEL, self._precision.level))
        return node

    def _add(self, made: dict[str, Made]) -> None:
        from onnx import helper

        for name, one in made.items():
            kind = helper.np_dtype_to_tensor_dtype(one.dtype)
            self._graph.initializer.add(name=name, data_type=kind, dims=one.shape)
        self._made.update(made)
