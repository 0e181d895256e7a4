from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.errors import InputError
from lora_export.onnx_export.file.bindings import (
    Binding,
    Bindings,
    read_bindings,
    write_bindings,
)
from lora_export.onnx_export.file.topology import describe


def renamed(proto):
    """The same graph under other names, nodes in another order."""
    names = {}

    def new(name):
        return names.setdefault(name, f"v{len(names)}") if name else ""

    graph = proto.graph
    for values in (graph.input, graph.output, graph.initializer, graph.value_info):
        for value in values:
            value.name = new(value.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    table = read_bindings(proto)
    write_bindings(
        proto,
        Bindings(
            {
                key: Binding(new(one.initializer), one.perm, one.kind)
                for key, one in table.parameters.items()
            },
            table.unused,
            tuple(map(new, table.constants)),
        ),
    )
    ordered = list(graph.initializer)[::-1]
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = new(dim.dim_param)
    return proto


@pytest.mark.parametrize("name", ["net", "gpt", "bert", "llama"])
def test_names_and_weights_do_not_count(zoo, name):
    case = zoo.captured(name)
    base = describe(case.proto())
    assert (base.nodes, base.initializers) == (
        len(case.proto().graph.node),
        len(case.proto().graph.initializer),
    )
    assert describe(renamed(case.proto())) == base
    assert describe(case.proto(zoo.build(name, seed=9))) == base
    assert describe(case.graph()) == base


def drop_attribute(graph):
    node = next(node for node in graph.node if node.op_type == "Conv")
    del node.attribute[0]


def change_attribute(graph):
    node = next(node for node in graph.node if node.op_type == "BatchNormalization")
    next(one for one in node.attribute if one.name == "epsilon").f = 1e-3


def swap_weights(graph):
    nodes = [node for node in graph.node if node.op_type == "Gemm"]
    left, right = (next(n for n in nodes if n.input[1].startswith(w)) for w in ("twin", "last"))
    left.input[1], right.input[1] = right.input[1], left.input[1]


def add_dead_node(graph):
    graph.node.add(op_type="Identity", input=[graph.input[0].name], output=["nowhere"])


def add_live_node(graph):
    last = graph.node[-1]
    inner = last.output[0]
    last.output[0] = "inner"
    graph.node.add(op_type="Identity", input=["inner"], output=[inner])


def change_constant(graph):
    slot = next(one for one in graph.initializer if one.data_type == TensorProto.INT64)
    values = numpy_helper.to_array(slot).copy()
    values.flat[-1] = 7
    slot.raw_data = values.tobytes()


def fix_dimension(graph):
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def change_operator(graph):
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def change_shape(graph):
    slot = next(one for one in graph.initializer if one.name == "last.bias")
    slot.dims[:] = [1, 40]


def double_an_output(graph):
    graph.output.add().CopyFrom(graph.output[0])


CHANGES = [drop_attribute, change_attribute, swap_weights, add_dead_node, add_live_node,
           change_constant, fix_dimension, change_operator, change_shape,
           double_an_output]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_computation_counts(zoo, change):
    proto = zoo.captured("net").proto()
    before = describe(proto)
    change(proto.graph)
    assert describe(proto).hash != before.hash


def test_the_opset_counts(zoo):
    proto = zoo.captured("net").proto()
    before = describe(proto)
    proto.opset_import[0].version += 1
    assert describe(proto).hash != before.hash


def small(*, scale, branch):
    """A graph without bindings, with a subgraph, a float and an integer constant."""
    body = helper.make_graph(
        [helper.make_node(branch, ["x"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Mul", ["x", "s"], ["z"])], "h", [],
        [helper.make_tensor_value_info("z", 1, [2])],
        [numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "s")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["m"]),
        helper.make_node("If", ["c"], ["out"], then_branch=body, else_branch=other),
        helper.make_node("Add", ["m", "out"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes, "main",
        [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("sum", 1, [2])],
        [numpy_helper.from_array(np.array(scale, np.float32), "scale")],
    )  # fmt: skip
    return helper.make_model(graph)


def test_without_bindings_floats_count_by_shape_and_subgraphs_by_content():
    base = describe(small(scale=[1.0, 2.0], branch="Relu"))
    assert describe(small(scale=[3.0, 4.0], branch="Relu")) == base
    assert describe(small(scale=[3.0], branch="Relu")) != base
    assert describe(small(scale=[1.0, 2.0], branch="Neg")) != base


def test_a_value_from_nowhere_is_refused():
    node = helper.make_node("Relu", ["ghost"], ["y"])
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, [2])])
    with pytest.raises(InputError, match="ghost: is used before"):
        describe(onnx.ModelProto(graph=graph))
