"""Each rewrite saves nodes and changes no bit of an output, whatever the input."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from onnx import checker, parser

from lora_export.models.network.quiet import quiet
from lora_export.onnx_export.capture.passes import _drop_unused
from lora_export.onnx_export.capture.rewrites import shorten

LEAST = "-3.4028234663852886e38"
# As transformers' exporter writes attention with a mask of booleans; `scores` stands for the rest.
GUARD = """
    seen = Cast <to = 1> (mask)
    hidden = Not (mask)
    hidden_number = Cast <to = 1> (hidden)
    added = Mul ({product})
    count = ReduceSum <keepdims = 1> (seen, last)
    nobody = Less (count, {bound})
    masked = Add (scores, added)
    shares = Softmax <axis = -1> (masked)
    result = Where (nobody, zero, shares)
"""
EXPANSION = """
    sizes = Shape <{attributes}> (scores)
    filled = Expand (least, sizes)
    result = Where (mask, {branches})
"""


def model(body, opset=20):
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g (bool[b, 1, q, k] mask, float[b, 2, q, k] scores) => (float[b, 2, q, k] result)
    <float zero = {{0.0}}, float one = {{1.0}}, float two = {{2.0}}, int64[1] last = {{-1}},
     float least = {{{LEAST}}}> {{ {body} }}"""
    return parser.parse_model(text)


def shortened(proto):
    traced = onnx_ir.from_proto(proto)
    shorten(traced)
    _drop_unused(traced)
    result = onnx_ir.to_proto(traced)
    checker.check_model(result, full_check=True)
    return result


def outputs(proto, mask, scores):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, {"mask": mask, "scores": scores})[0]


def ops(proto):
    return [node.op_type for node in proto.graph.node]


def hostile_inputs(rows=2, keys=3):
    """Every mask of these rows, with zeros of both signs, infinities and NaN among the scores."""
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, 1.5], np.float32
    )
    random = np.random.default_rng(0)
    for bits in itertools.product([False, True], repeat=rows * keys):
        mask = np.array(bits).reshape(1, 1, rows, keys)
        yield mask, random.choice(special, (1, 2, rows, keys))
        yield mask, random.standard_normal((1, 2, rows, keys)).astype(np.float32)
    for shape in ((0, rows, keys), (1, 0, keys), (2, rows, 0), (1, 0, 0)):
        batch, queries, width = shape
        yield (
            np.ones((batch, 1, queries, width), bool),
            np.ones((batch, 2, queries, width), np.float32),
        )


def same(left, right):
    for mask, scores in hostile_inputs():
        expected, actual = outputs(left, mask, scores), outputs(right, mask, scores)
        np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("product", ["hidden_number, least", "least, hidden_number"])
def test_the_guard_of_rows_masked_throughout_takes_three_nodes_less(product):
    plain = model(GUARD.format(product=product, bound="one"))
    short = shortened(plain)
    assert ops(short) == ["Where", "ReduceMax", "Less", "Add", "Softmax", "Where"]
    assert len(ops(short)) == len(ops(plain)) - 3
    same(plain, short)


def test_another_bound_than_one_keeps_its_count():
    plain = model(GUARD.format(product="hidden_number, least", bound="two"))
    short = shortened(plain)
    assert "ReduceSum" in ops(short)
    same(plain, short)


def test_a_mask_that_is_multiplied_by_a_positive_number_stays():
    plain = model(GUARD.format(product="hidden_number, two", bound="one"))
    assert ops(shortened(plain)) == ops(plain)


def test_a_mask_that_is_multiplied_by_an_input_stays():
    """As by a weight: its value must decide nothing."""
    plain = model(GUARD.format(product="hidden_number, least", bound="one"))
    traced = onnx_ir.from_proto(plain)
    traced.graph.initializers["least"].const_value = None
    shorten(traced)
    assert [node.op_type for node in traced.graph] == ops(plain)


def test_before_opset_18_the_count_stays():
    plain = model(GUARD.format(product="hidden_number, least", bound="one"), opset=17)
    short = shortened(plain)
    assert len(ops(short)) == len(ops(plain)) - 2
    assert "ReduceMax" not in ops(short)


@pytest.mark.parametrize("branches", ["scores, filled", "filled, scores"])
def test_a_scalar_is_not_expanded_to_what_it_is_chosen_against(branches):
    plain = model(EXPANSION.format(attributes="start = 0", branches=branches))
    short = shortened(plain)
    assert ops(short) == ["Where"]
    same(plain, short)


def test_a_part_of_the_sizes_is_not_the_whole():
    plain = model(EXPANSION.format(attributes="start = 1", branches="scores, filled"))
    assert ops(shortened(plain)) == ops(plain)


@pytest.mark.parametrize(("target", "left"), [("b, 2, q, k", 0), ("b, 2, k, q", 1), ("b, 2, q", 1)])
def test_a_reshape_goes_only_where_all_sizes_have_the_same_names(target, left):
    from onnx import TensorProto, helper

    plain = model("shape = Shape (scores) moved = Reshape (scores, shape) result = Abs (moved)")
    dims = [int(dim) if dim.isdigit() else dim for dim in target.split(", ")]
    plain.graph.value_info.append(helper.make_tensor_value_info("moved", TensorProto.FLOAT, dims))
    traced = onnx_ir.from_proto(plain)
    with quiet():
        shorten(traced)
        _drop_unused(traced)
    assert [node.op_type for node in traced.graph].count("Reshape") == left
