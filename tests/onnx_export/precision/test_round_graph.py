"""Graphs with rounded weights: made from any graph, and audited to the last code."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from lora_export.errors import FitError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import place_weights
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.precision.grids import PRECISIONS
from lora_export.onnx_export.precision.round_graph import lower
from lora_export.onnx_export.precision.rounded_audit import FloatGraph, audit_lowered
from lora_export.onnx_export.precision.written import as_written
from lora_export.verification.runtime.sessions import run_model

EARLIER = "int4 of earlier versions"
FORMS = {
    "int8": PRECISIONS["int8"].with_codes("unsigned"),
    "int8 signed": PRECISIONS["int8"].with_codes("signed"),
    "int8-weights": PRECISIONS["int8-weights"],
    "int4": PRECISIONS["int4"],
    EARLIER: replace(PRECISIONS["int4"], level=0),
    "int8-weights of earlier versions": replace(PRECISIONS["int8-weights"], level=0),
}
ROUNDING = ["int8", "int8 signed", "int8-weights", "int4"]
FAR = {"int8": 0.1, "int8-weights": 0.03, "int4": 0.3}
CASES = ["net", "gpt", "bert", "roberta", "llama", "gpt2"]


def far(name):
    """How far an output may be off, as a share of the largest."""
    return FAR[name.split()[0]]


def exact(path, *, providers, **_):
    """Open a session in which signed codes do not overflow; others are not changed by that."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, providers=providers)


def lowered(captured, name):
    """The lowered graph with all its values in memory, so that a fault can be planted."""
    return lowered_graph(captured.graph(), captured.weights(), name)


def lowered_graph(model, weights, name):
    rest, made = lower(model, FORMS[name], weights)
    for placed in place_weights(model, rest, made).values():
        placed.slot.raw_data = b"".join(map(bytes, placed.blocks()))
    return model


def audited(captured, model, name, path):
    save_model(model, path, {})
    full = FloatGraph(captured.graph(), captured.weights())
    found, weights = audit_lowered(path, full=full, precision=FORMS[name], inputs=captured.specs)
    return {check.name: check for check in found}, weights


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("case", CASES)
def test_every_form_of_product_is_rounded_and_proven(zoo, case, precision, tmp_path):
    captured = zoo.captured(case)
    path = tmp_path / "lowered.onnx"
    model = lowered(captured, precision)
    checks, weights = audited(captured, model, precision, path)
    assert not [check for check in checks.values() if not check.passed]
    assert lowered(captured, precision).SerializeToString(deterministic=True) == path.read_bytes()

    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Gemm"}
    assert ("MatMulInteger" if FORMS[precision].dynamic else "MatMulNBits") in kinds
    matrices = {name for name, array in captured.weights().items() if array.ndim == 2}
    small = {name for name in matrices if "token_type" in name}
    assert not (matrices - small) & set(weights.kept)
    before = sum(size for size, _ in weights.rounded.values())
    assert sum(size for _, size in weights.rounded.values()) < 0.5 * before

    save_model(captured.proto(), tmp_path / "full.onnx", {})
    probes = captured.probes()
    pairs = zip(
        run_model(tmp_path / "full.onnx", probes),
        run_model(path, probes, opener=exact),
        strict=True,
    )
    for full, found in pairs:
        for name in full:
            assert (
                np.abs(full[name] - found[name]).max() < far(precision) * np.abs(full[name]).max()
            )


class Both(torch.nn.Module):
    """One weight, square, used in two directions."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.inner(x) + x @ self.inner.weight


@pytest.mark.parametrize("precision", ROUNDING)
def test_a_weight_used_in_two_directions_is_rounded_in_each(precision, tmp_path):
    torch.manual_seed(0)
    model, specs = Both().eval(), parse_inputs(("x=float32[batch,32]",))
    weights = {"inner.weight": model.inner.weight.detach()}
    full = FloatGraph(capture(model, specs), weights)
    small = onnx.ModelProto.FromString(full.model.SerializeToString())
    path = tmp_path / "lowered.onnx"
    rest, made = lower(small, FORMS[precision], weights)
    save_model(small, path, rest, made=made)
    found, _ = audit_lowered(path, full=full, precision=FORMS[precision], inputs=specs)
    assert not [check for check in found if not check.passed]
    x = torch.randn(3, 32)
    wanted = model(x).detach().numpy()
    [outputs] = run_model(path, [{"x": x.numpy()}], opener=exact)
    [array] = outputs.values()
    assert np.abs(array - wanted).max() < far(precision) * np.abs(wanted).max()


def test_a_graph_without_linear_layers_is_refused():
    torch.manual_seed(0)
    specs = parse_inputs(("image=float32[batch,1,8,8]",))
    model = capture(torch.nn.Conv2d(1, 4, 3).eval(), specs)
    with pytest.raises(FitError, match="1 Conv without such"):
        lower(model, FORMS["int8"], {})


def initializer(model, suffix):
    return next(t for t in model.graph.initializer if t.name.endswith(suffix))


def edit(model, suffix, change):
    tensor = initializer(model, suffix)
    array = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(change(array), tensor.name))


def scaled(array, factor=1.01):
    array.reshape(-1)[0] *= array.dtype.type(factor)
    return array


def flipped(array):
    flat = array.reshape(-1)
    flat[0] = flat[0] ^ 2
    return array


def swap(model, kind="q_proj"):
    """Two layers' weights, of one shape, in each other's place."""
    names = [f"model.layers.{n}.self_attn.{kind}.weight.T.rounded" for n in (0, 1)]
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            for left, right in (names, names[::-1]):
                if name.startswith(left):
                    node.input[place] = right + name.removeprefix(left)
                    break


def swap_values(model):
    names = [f"model.layers.{n}.self_attn.q_proj.weight.T.rounded" for n in (0, 1)]
    pair = [initializer(model, name) for name in names]
    pair[0].raw_data, pair[1].raw_data = pair[1].raw_data, pair[0].raw_data


def double(model):
    """One more node, which doubles an output in front of the graph's own."""
    node = model.graph.node[-1]
    name = node.output[0]
    node.output[0] = f"{name}.half"
    model.graph.node.append(onnx.helper.make_node("Add", [f"{name}.half"] * 2, [name]))


def stray(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2000, np.float32), "stray"))


STEPS, SCALES = "rounded weights, in steps", "scales of rounded weights"
GRAPH, OTHERS = "same graph but for the rounding", "every other weight bit-equal"
FAULTS = {
    "one block's scale is 1 % off": (lambda m: edit(m, ".rounded.scale", scaled), SCALES),
    "one code is wrong": (lambda m: edit(m, "k_proj.weight.T.rounded", flipped), STEPS),
    "one zero point is wrong": (lambda m: edit(m, ".rounded.zero_point", flipped), STEPS),
    "a NaN for a scale": (lambda m: edit(m, ".rounded.scale", lambda a: scaled(a, np.nan)), SCALES),
    "a table's row is scaled": (lambda m: edit(m, ".rounded_rows.scale", scaled), SCALES),
    "a table's code is wrong": (lambda m: edit(m, ".rounded_rows", flipped), STEPS),
    "a weight left alone moves": (lambda m: edit(m, "norm.weight", scaled), OTHERS),
    "two weights are swapped": (swap, GRAPH),
    "two weights' codes are swapped": (swap_values, STEPS),
    "a node more": (double, GRAPH),
    "a weight more": (stray, OTHERS),
}


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(zoo, fault, precision, tmp_path):
    plant, check = FAULTS[fault]
    captured = zoo.captured("llama")
    model = lowered(captured, precision)
    plant(model)
    checks, _ = audited(captured, model, precision, tmp_path / "lowered.onnx")
    assert not checks[check].passed


def set_level(level):
    """Give every product in blocks this accuracy_level; None takes it away."""

    def plant(model):
        for node in model.graph.node:
            if node.op_type == "MatMulNBits":
                kept = [item for item in node.attribute if item.name != "accuracy_level"]
                del node.attribute[:]
                node.attribute.extend(kept)
                if level is not None:
                    node.attribute.append(onnx.helper.make_attribute("accuracy_level", level))

    return plant


def add_attribute(model):
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    node.attribute.append(onnx.helper.make_attribute("weight_prepacked", 1))


@pytest.mark.parametrize(
    ("precision", "plant"),
    [
        ("int4", set_level(None)),
        ("int4", set_level(1)),
        (EARLIER, set_level(4)),
        ("int8-weights", set_level(None)),
        ("int8-weights", set_level(2)),
        ("int4", add_attribute),
        ("int8-weights", add_attribute),
    ],
)
def test_an_attribute_that_is_not_of_our_making_is_caught(zoo, precision, plant, tmp_path):
    """With accuracy_level the runtime rounds the activations, too."""
    captured = zoo.captured("llama")
    model = lowered(captured, precision)
    plant(model)
    checks, _ = audited(captured, model, precision, tmp_path / "lowered.onnx")
    assert not checks[GRAPH].passed


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_a_finished_file_is_read_from_it(zoo, name, tmp_path):
    """Files of earlier versions, and both codes of int8, are proven in their own form."""
    path = tmp_path / "lowered.onnx"
    save_model(lowered(zoo.captured("llama"), name), path, {})
    asked = PRECISIONS[FORMS[name].name]
    for one in (asked, *((asked.with_codes("signed"),) if asked.codes else ())):
        assert as_written(path, one) == FORMS[name]


def test_a_file_of_two_forms_is_in_none(zoo, tmp_path):
    path = tmp_path / "lowered.onnx"
    model = lowered(zoo.captured("llama"), "int8")
    tensor = initializer(model, "q_proj.weight.T.rounded")
    tensor.data_type = onnx.TensorProto.INT8
    save_model(model, path, {})
    for name in ("int8", "int8 signed"):
        assert as_written(path, FORMS[name]) == FORMS[name]
        checks, _ = audited(zoo.captured("llama"), model, name, path.with_name(f"{name}.onnx"))
        assert not checks[SCALES].passed
    path.write_bytes(b"no model")
    assert as_written(path, FORMS["int4"]) == FORMS["int4"]


def test_signed_codes_are_the_unsigned_ones(zoo, tmp_path):
    """The same values, so the same outputs wherever nothing overflows."""
    captured = zoo.captured("bert")
    models = [lowered(captured, name) for name in ("int8", "int8 signed")]
    pairs = list(zip(*(model.graph.initializer for model in models), strict=True))
    signed = 0
    for left, right in pairs:
        plain, other = map(numpy_helper.to_array, (left, right))
        if other.dtype == np.int8 and plain.dtype == np.uint8:
            assert np.array_equal(plain.astype(int) - 128, other)
            signed += 1
        else:
            assert np.array_equal(plain, other)
    assert signed >= 2
    runs = []
    for place, model in enumerate(models):
        save_model(model, tmp_path / f"{place}.onnx", {})
        runs.append(run_model(tmp_path / f"{place}.onnx", captured.probes(), opener=exact))
    for plain, other in zip(*runs, strict=True):
        assert all(np.array_equal(plain[name], other[name]) for name in plain)


def test_another_precision_than_said_is_caught(zoo, tmp_path):
    captured = zoo.captured("llama")
    model = lowered(captured, "int8-weights")
    checks, _ = audited(captured, model, "int4", tmp_path / "lowered.onnx")
    assert not checks[SCALES].passed
    checks, _ = audited(captured, model, EARLIER, tmp_path / "again.onnx")
    assert not checks[GRAPH].passed


def test_weights_of_an_earlier_merge_are_caught(zoo, tmp_path):
    """Stale data: a file of the same base and another adapter."""
    captured = zoo.captured("llama")
    weights = captured.weights()
    name = "model.layers.1.mlp.up_proj.weight"
    stale = {**weights, name: weights[name] * np.float32(1.02)}
    model = lowered_graph(captured.graph(), stale, "int4")
    checks, _ = audited(captured, model, "int4", tmp_path / "lowered.onnx")
    assert not checks[SCALES].passed
    assert not checks[STEPS].passed


def test_a_graph_in_float32_is_no_lowered_one(zoo, tmp_path):
    captured = zoo.captured("net")
    checks, weights = audited(captured, captured.proto(), "int8", tmp_path / "lowered.onnx")
    assert not checks[SCALES].passed
    assert not weights.rounded
