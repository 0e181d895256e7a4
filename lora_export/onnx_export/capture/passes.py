"""Passes that shrink a traced graph as torch's optimiser does, without a look at any weight.

torch's own optimiser merges equal weights, drops biases of zero and folds tables: two adapters of
one base would get two graphs. Here the weights are hidden while the passes run. The graph cannot
depend on what the passes cannot see.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture.rewrites import shorten
from lora_export.onnx_export.capture.weights_in_graph import transposed
from lora_export.onnx_export.file.topology import ONNX_DOMAINS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_ir

# These three are those of onnxscript.optimizer.optimize_ir, as torch calls it.
ITERATIONS = 2
INPUT_LIMIT = 8192
OUTPUT_LIMIT = 512 * 512

# A node's module path is kept: by it faults are bisected to a module.
KEPT_METADATA = frozenset({"pkg.torch.onnx.name_scopes"})


def simplify(traced: onnx_ir.Model, weights: Mapping[str, onnx_ir.Value]) -> None:
    """Run all passes on the graph, in place.

    Without onnxscript's (private) passes the graph stays as torch wrote it: larger, equally right.

    Args:
        traced: a graph from torch.onnx.export(optimize=False), weights in memory.
        weights: the initializers that hold weights (from `weights_in_graph.find`). Their values are
            neither read nor changed. A weight that is only ever transposed, in one way, becomes the
            initializer `<name>.T`.
    """
    with quiet(), _hidden(weights):
        sequence = _passes()
        if sequence is not None:
            sequence(traced)
        shorten(traced)
    for value in weights.values():
        _fold_transposition(traced.graph, value)
    _drop_unused(traced)


@contextmanager
def _hidden(weights: Mapping[str, onnx_ir.Value]) -> Iterator[None]:
    """Take the values of weights out of the graph in the block."""
    values = {name: value.const_value for name, value in weights.items()}
    for value in weights.values():
        value.const_value = None
    try:
        yield
    finally:
        for name, value in weights.items():
            value.const_value = values[name]


def _passes() -> Any:
    """Make the passes of torch 2.13's optimiser; None where onnxscript has them no longer.

    Reproduces onnxscript.optimizer.optimize_ir and its order.
    """
    try:
        import onnx_ir.passes as ir_passes
        from onnx_ir.passes import common
        from onnxscript.optimizer import _constant_folding as folding
        from onnxscript.rewriter import _DEFAULT_REWRITE_RULES as RULES
        from onnxscript.rewriter import RewritePass

        loop = ir_passes.PassManager(
            [
                folding.FoldConstantsPass(
                    shape_inference=True,
                    input_size_limit=INPUT_LIMIT,
                    output_size_limit=OUTPUT_LIMIT,
                    should_fold=_should_fold,
                ),
                RewritePass(RULES),
                common.RemoveUnusedNodesPass(),
                common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
                common.RemoveUnusedOpsetsPass(),
            ],
            steps=ITERATIONS,
            early_stop=True,
        )
        return ir_passes.Sequential(
            common.InlinePass(),
            loop,
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        )
    except (ImportError, AttributeError, TypeError):
        return None


def _should_fold(node: onnx_ir.Node) -> bool | None:
    # onnx's reference implementation of Resize takes minutes; transformers' exporter skips it too.
    return False if node.op_type == "Resize" else None


def _fold_transposition(graph: onnx_ir.Graph, value: onnx_ir.Value) -> None:
    """Replace Transpose(weight) by an initializer, when the weight is used in no other way.

    A weight with another use keeps its node: a second copy of an embedding costs more than that.
    """
    import onnx_ir

    nodes = [node for node, _ in value.uses()]
    perms = {_transposition(node) for node in nodes}
    perm = next(iter(perms), None)
    if len(perms) != 1 or perm is None or value.is_graph_output() or value.name is None:
        return
    if any(node.graph is not graph or node.outputs[0].is_graph_output() for node in nodes):
        return
    new = transposed(value, perm, f"{value.name}.T")
    graph.register_initializer(new)
    for node in nodes:
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], new)
        graph.remove(node, safe=True)
    del graph.initializers[value.name]


def _transposition(node: onnx_ir.Node) -> tuple[int, ...] | None:
    """Return the permutation of a Transpose node; None for any other node."""
    value = node.inputs[0]
    if node.op_type != "Transpose" or node.domain not in ONNX_DOMAINS or value is None:
        return None
    if "perm" in node.attributes:
        return tuple(int(axis) for axis in node.attributes["perm"].as_ints())
    # Without perm a Transpose reverses the axes.
    return tuple(reversed(range(len(value.shape)))) if value.shape is not None else None


def _drop_unused(traced: onnx_ir.Model) -> None:
    """Remove nodes and initializers that no output depends on."""
    from onnx_ir.passes import common

    with quiet():
        common.RemoveUnusedNodesPass()(traced)
    for name, value in list(traced.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del traced.graph.initializers[name]


def make_names_unique(traced: onnx_ir.Model) -> None:
    """Rename inner values that clash with an output's name, in place."""
    from onnx_ir.passes import common

    with quiet():
        common.NameFixPass()(traced)


def strip_traces_of_the_run(traced: onnx_ir.Model) -> None:
    """Remove source paths, stack traces and torch's notes from the graph, in place.

    They hold folders of the tracing machine and differ from machine to machine.
    """
    import onnx_ir

    graph = traced.graph
    traced.doc_string = graph.doc_string = None
    graph.metadata_props.clear()
    traced.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.doc_string = None
        _strip(value, frozenset())
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        node.doc_string = None
        _strip(node, KEPT_METADATA)
        for value in node.outputs:
            value.doc_string = None
            _strip(value, frozenset())


def _strip(item: onnx_ir.Node | onnx_ir.Value, kept: frozenset[str]) -> None:
    for key in [key for key in item.metadata_props if key not in kept]:
        del item.metadata_props[key]
