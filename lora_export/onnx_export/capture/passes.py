"""Shrinks a traced graph the way torch's optimiser does, without looking at a single weight.

torch's own optimiser merges equal weights, drops biases of zero and folds tables, so that two
adapters of one base would get two graphs. Here the weights are taken out of the graph's sight while
the optimiser's passes run: what they cannot see, the graph cannot depend on.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture.rewrites import shorten
from lora_export.onnx_export.capture.weights_in_graph import transposed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_ir

ITERATIONS = 2
INPUT_LIMIT = 8192
OUTPUT_LIMIT = 512 * 512

# Metadata worth keeping: a node's module path, by which faults are bisected to a module.
KEPT_METADATA = frozenset({"pkg.torch.onnx.name_scopes"})

ONNX_DOMAINS = frozenset({"", "ai.onnx"})


def simplify(traced: onnx_ir.Model, weights: Mapping[str, onnx_ir.Value]) -> None:
    """Run all passes on the graph, in place.

    Args:
        traced: a graph from torch.onnx.export(optimize=False), weights in memory.
        weights: the initializers that hold weights (from `weights_in_graph.find`); their values are
            neither read nor changed, except that a weight all of whose uses are one transposition
            becomes the initializer `<name>.T`.

    Without onnxscript's (private) passes the graph stays as torch wrote it: larger, equally right.
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
    values = {name: value.const_value for name, value in weights.items()}
    for value in weights.values():
        value.const_value = None
    try:
        yield
    finally:
        for name, value in weights.items():
            value.const_value = values[name]


def _passes() -> Any:
    """Torch 2.13's optimiser (onnxscript.optimizer.optimize_ir), or None where it is not found."""
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
    # onnx's reference Resize takes minutes; transformers' exporter leaves it out as well.
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
    """The permutation a Transpose node applies; None for any other node."""
    value = node.inputs[0]
    if node.op_type != "Transpose" or node.domain not in ONNX_DOMAINS or value is None:
        return None
    if "perm" in node.attributes:
        return tuple(int(axis) for axis in node.attributes["perm"].as_ints())
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

    They betray the tracing machine's folders and differ from machine to machine.
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
