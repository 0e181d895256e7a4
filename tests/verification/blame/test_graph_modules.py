"""Which values enter and leave which module, in a graph that calls one module twice."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from lora_export.verification.blame.graph_modules import SCOPES, read_modules


@pytest.fixture
def modules(tmp_path):
    """first -> block (inner, norm) -> block again -> Neg of the root."""
    nodes = [
        _node("Relu", "x", "a", "first"),
        _node("Tanh", "a", "b", "block", "block.inner"),
        _node("Abs", "b", "c", "block", "block.norm"),
        _node("Tanh", "c", "d", "block", "block.inner"),
        _node("Abs", "d", "e", "block", "block.norm"),
        _node("Neg", "e", "y"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), tmp_path / "g.onnx")
    return read_modules(tmp_path / "g.onnx")


def _node(kind, taken, given, *scopes):
    node = helper.make_node(kind, [taken], [given], name=f"node_{given}")
    node.metadata_props.add(key=SCOPES, value=str(["", *scopes, "operator"]))
    return node


def test_what_one_call_gives_the_next_is_among_its_faces(modules):
    assert modules.faces("block", repeated=False) == (["a"], ["e"])
    entering, leaving = modules.faces("block", repeated=True)
    assert {"a", "c"} <= set(entering)
    assert {"c", "e"} <= set(leaving)
    assert modules.faces("block.inner", repeated=True) == (["a", "c"], ["b", "d"])


def test_what_enters_a_module_that_gives_nothing(tmp_path):
    nodes = [_node("Relu", "x", "y"), _node("Tanh", "x", "t"), _node("Exp", "t", "z", "dead")]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), tmp_path / "g.onnx")
    modules = read_modules(tmp_path / "g.onnx")
    assert "t" in modules.boundaries()
    assert modules.boundaries({"dead"}) == ["t"]
