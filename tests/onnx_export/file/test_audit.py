from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from lora_export.onnx_export.file import bindings, external, weight_blocks
from lora_export.onnx_export.file.audit import audit, different_bits
from lora_export.onnx_export.file.bindings import KEY, read_bindings
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.file.topology import describe
from lora_export.onnx_export.file.weight_blocks import Cast, as_array
from lora_export.verification.model.tolerance import derive
from lora_export.verification.runtime.sessions import run_model


@pytest.fixture(scope="module")
def merged(zoo):
    """The captured net with the weights of another model in place of its own."""
    case, model = zoo.captured("net"), zoo.build("net", seed=11)
    return case, model, case.proto(model)


def copy(proto):
    return onnx.ModelProto.FromString(proto.SerializeToString())


def failed(path, case, model):
    checks = audit(
        path,
        expected=lambda: case.weights(model),
        base=describe(case.proto()),
        inputs=case.specs,
    )
    assert all(check.tolerance == 0 and check.passed == (check.worst == 0) for check in checks)
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("threshold", [1 << 30, 1000])
@pytest.mark.parametrize("name", ["net", "gpt", "bert", "roberta", "llama", "gpt2"])
def test_a_right_file_passes(zoo, tmp_path, name, threshold):
    case, model = zoo.captured(name), zoo.build(name, seed=11)
    path, weights = tmp_path / "model.onnx", case.weights(model)
    save_model(case.graph(), path, weights, external_threshold=threshold)
    assert failed(tmp_path / "model.onnx", case, model) == set()


def tensor(proto, name):
    return next(one for one in proto.graph.initializer if one.name == name)


def edit(proto, name, change):
    slot = tensor(proto, name)
    new = numpy_helper.from_array(change(numpy_helper.to_array(slot).copy()), name)
    slot.CopyFrom(new)


def swapped(proto):
    left, right = tensor(proto, "last.weight"), tensor(proto, "twin.weight")
    left.raw_data, right.raw_data = right.raw_data, left.raw_data


def rewired(proto):
    for node in proto.graph.node:
        names = {"last.weight": "twin.weight", "twin.weight": "last.weight"}
        node.input[:] = [names.get(one, one) for one in node.input]


def transposed(proto):
    edit(proto, "last.weight", lambda array: np.ascontiguousarray(array.T))


def scaled(proto):
    edit(proto, "last.weight", lambda array: array * np.float32(1.005))


def row_zeroed(proto):
    def zero(array):
        array[3] = 0
        return array

    edit(proto, "last.weight", zero)


def one_ulp(proto):
    def nudge(array):
        array[0, 0] = np.nextafter(array[0, 0], np.float32(9))
        return array

    edit(proto, "last.weight", nudge)


def not_a_number(proto):
    def poison(array):
        array[0, 0] = np.nan
        return array

    edit(proto, "last.weight", poison)


def halved_precision(proto):
    edit(proto, "last.weight", lambda array: array.astype(np.float16).astype(np.float32))


def static_axis(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def renamed_axis(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "s72"


def extra_node(proto):
    last = proto.graph.node[-1]
    name = last.output[0]
    last.output[0] = "inner"
    proto.graph.node.add(op_type="Identity", input=["inner"], output=[name])


def extra_input(proto):
    proto.graph.input.add().CopyFrom(proto.graph.input[0])
    proto.graph.input[1].name = "another"


def live_branch(proto):
    """The adapter left in the graph beside the base, as an unmerged export has it."""
    node = next(one for one in proto.graph.node if one.input[1:2] == ["last.weight"])
    shift = numpy_helper.from_array(np.full((40, 40), 0.01, np.float32), "lora_delta")
    proto.graph.initializer.append(shift)
    place = list(proto.graph.node).index(node)
    add = onnx.helper.make_node("Add", ["last.weight", "lora_delta"], ["summed"])
    node.input[1] = "summed"
    proto.graph.node.insert(place, add)


def hidden_constant(proto):
    """The weight moved into a Constant node."""
    slot = tensor(proto, "last.weight")
    constant = onnx.helper.make_node("Constant", [], ["baked"], value=slot)
    node = next(one for one in proto.graph.node if one.input[1:2] == ["last.weight"])
    node.input[1] = "baked"
    proto.graph.node.insert(0, constant)


def unbound(proto):
    entry = next(one for one in proto.metadata_props if one.key == KEY)
    entry.value = entry.value.replace('"last.weight":{', '"lost.weight":{')


def no_table(proto):
    del proto.metadata_props[:]


def damaged_graph(proto):
    proto.graph.node[-1].input[0] = "nothing"


EQUAL, GRAPH, DIMENSIONS = "every weight bit-equal", "same graph as the base", "dynamic dimensions"
UNEXPLAINED, FINITE = "no unexplained weights", "no NaN or infinity"
FAULTS = [
    (swapped, {EQUAL}, True),
    (rewired, {GRAPH}, True),
    (transposed, {EQUAL}, True),
    (scaled, {EQUAL}, True),
    (row_zeroed, {EQUAL}, True),
    (halved_precision, {EQUAL}, True),
    (one_ulp, {EQUAL}, False),
    (not_a_number, {EQUAL, FINITE}, True),
    (static_axis, {GRAPH, DIMENSIONS}, None),
    (renamed_axis, {DIMENSIONS}, False),
    (extra_node, {GRAPH}, False),
    (extra_input, {GRAPH, DIMENSIONS}, None),
    (live_branch, {GRAPH, UNEXPLAINED}, True),
    (hidden_constant, {GRAPH, UNEXPLAINED}, False),
    (unbound, {"bindings", GRAPH}, False),
    (no_table, {"bindings"}, False),
    (damaged_graph, {"onnx.checker"}, None),
]


@pytest.fixture(scope="module")
def tolerance(zoo, merged):
    case, model, _ = merged
    unmerged = case.expected(model)
    doubled = zoo.build("net", seed=11).double()
    probes = [{"image": probe["image"].astype(np.float64)} for probe in case.probes()]
    exact = [zoo.run_torch(doubled, probe) for probe in probes]
    return derive(
        float32=unmerged, float64=exact, nudged=unmerged, split=unmerged, base=case.expected(),
        merged=unmerged,
    )  # fmt: skip


@pytest.mark.parametrize(("fault", "names", "seen_by_running"), FAULTS)
def test_a_planted_fault_is_found(merged, tolerance, tmp_path, fault, names, seen_by_running):
    case, model, proto = merged
    faulty, path = copy(proto), tmp_path / "model.onnx"
    fault(faulty)
    path.write_bytes(faulty.SerializeToString())
    assert failed(path, case, model) == names
    if seen_by_running is not None:
        check = tolerance.check("run", case.expected(model), run_model(path, case.probes()))
        assert check.passed is not seen_by_running


def stale_data(folder, data):
    """The weights' file of another export, under this one's name."""
    content = bytearray(data.read_bytes())
    content[8:4096] = bytes(4088)
    data.write_bytes(content)


def short_data(folder, data):
    data.write_bytes(data.read_bytes()[:-4096])


def missing_data(folder, data):
    data.unlink()


def linked_data(folder, data):
    target = folder / "elsewhere"
    data.rename(target)
    data.symlink_to(target)


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (stale_data, {EQUAL}),
        (short_data, {external.NAME}),
        (missing_data, {external.NAME}),
        (linked_data, {external.NAME}),
    ],
)
def test_faults_of_external_data_are_found(merged, tmp_path, fault, names):
    case, model, proto = merged
    _, data = save_model(proto, tmp_path / "model.onnx", {}, external_threshold=1000)
    fault(tmp_path, tmp_path / data.path)
    assert failed(tmp_path / "model.onnx", case, model) == names


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("location", "../secret", "outside the folder"),
        ("location", "/etc/passwd", "outside the folder"),
        ("location", "..", "outside the folder"),
        ("location", "", "no usable external data"),
        ("offset", "-4", "no usable external data"),
        ("length", "x", "no usable external data"),
        ("length", "4", "its shape needs"),
        ("offset", "99999999", "which has"),
        ("offset", "0", "overlaps"),
    ],
)
def test_references_that_cannot_be_trusted_are_refused(merged, tmp_path, key, value, match):
    _, _, proto = merged
    path = tmp_path / "model.onnx"
    save_model(proto, path, {}, external_threshold=1000)
    light = onnx.load(str(path), load_external_data=False)
    slot = [one for one in light.graph.initializer if one.external_data][1]
    next(entry for entry in slot.external_data if entry.key == key).value = value
    path.write_bytes(light.SerializeToString())
    check = external.check(path)
    assert not check.passed
    assert match in check.detail


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"PK\x03\x04 zip"])
def test_a_file_that_is_no_onnx_fails_the_audit(merged, tmp_path, content):
    case, model, _ = merged
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert failed(path, case, model) == {external.NAME}


def test_every_bound_weight_must_be_expected(merged, tmp_path):
    case, model, proto = merged
    save_model(proto, tmp_path / "model.onnx", {})
    expected = case.weights(model)
    last = expected.pop("last.weight")
    checks = audit(tmp_path / "model.onnx", expected=lambda: {**expected, "more": last},
                   base=describe(case.proto()), inputs=case.specs)  # fmt: skip
    [check] = [check for check in checks if not check.passed]
    assert (check.name, check.worst) == ("bindings", 2.0)
    assert "more: expected, but not bound" in check.detail


def test_torch_tensors_and_bfloat16_are_compared_by_bits(merged, tmp_path):
    case, model, proto = merged
    save_model(proto, tmp_path / "model.onnx", {})
    state = {name: torch.from_numpy(value) for name, value in case.weights(model).items()}
    base = describe(case.proto())
    checks = audit(tmp_path / "model.onnx", expected=lambda: state, base=base, inputs=case.specs)
    assert all(one.passed for one in checks)
    state["last.bias"] = state["last.bias"].bfloat16()
    checks = audit(tmp_path / "model.onnx", expected=lambda: state, base=base, inputs=case.specs)
    [check] = [check for check in checks if not check.passed]
    assert (check.worst, check.where) == (float("inf"), "last.bias")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", ["float16", "float32"])
def test_numpy_rounds_a_weight_as_torch_does(wanted, dtype):
    torch.manual_seed(0)
    values = (torch.randn(1000) * 10.0 ** torch.randint(-9, 4, (1000,))).to(dtype)
    stored = values.to(getattr(torch, wanted)).numpy()
    weight = Cast(values, np.dtype(wanted))
    assert different_bits(weight, stored) == 0
    other = stored.copy()
    other.view(np.uint8)[-1] ^= 1
    assert different_bits(weight, other) == 1
    assert different_bits(weight, stored[:-1]) == float("inf")


def shifted(weight, perm=()):
    """The blocks of a weight, each from one row further on."""
    for part in weight_blocks.parts(weight_blocks.turn(weight, perm)):
        yield np.roll(as_array(part), 1, axis=0) if part.ndim else as_array(part)


def twice(weight, perm=()):
    """The first block of a weight in the place of every block."""
    found = [as_array(part) for part in weight_blocks.parts(weight_blocks.turn(weight, perm))]
    return [found[0] if one.shape == found[0].shape else one for one in found]


@pytest.mark.parametrize("fault", [shifted, twice])
def test_a_fault_in_the_order_of_blocks_is_found(merged, tmp_path, fault, monkeypatch):
    """The audit cuts other blocks than the writer: those of the parameter, not of the graph."""
    case, model, _ = merged
    monkeypatch.setattr(weight_blocks, "BLOCK", 64)
    right, wrong = tmp_path / "right.onnx", tmp_path / "wrong.onnx"
    save_model(case.graph(), right, case.weights(model), external_threshold=1)
    assert failed(right, case, model) == set()
    monkeypatch.setattr(bindings, "blocks", fault)
    save_model(case.graph(), wrong, case.weights(model), external_threshold=1)
    assert failed(wrong, case, model) == {"every weight bit-equal"}


def test_blocks_of_another_size_than_the_weight_are_not_written(merged, tmp_path, monkeypatch):
    case, model, _ = merged
    monkeypatch.setattr(bindings, "blocks", lambda weight, perm=(): [as_array(weight)[:-1]])
    with pytest.raises(AssertionError):
        save_model(case.graph(), tmp_path / "x.onnx", case.weights(model))


def test_the_number_of_differing_elements_is_told(merged, tmp_path):
    case, model, proto = merged
    faulty = copy(proto)
    row_zeroed(faulty)
    save_model(faulty, tmp_path / "model.onnx", {})
    checks = audit(tmp_path / "model.onnx", expected=lambda: case.weights(model),
                   base=describe(case.proto()), inputs=case.specs)  # fmt: skip
    [check] = [check for check in checks if not check.passed]
    assert (check.worst, check.where) == (40.0, "last.weight")


def test_a_copied_folder_still_passes(merged, tmp_path):
    case, model, proto = merged
    (tmp_path / "one").mkdir()
    save_model(proto, tmp_path / "one" / "model.onnx", {}, external_threshold=1000)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert failed(tmp_path / "two" / "model.onnx", case, model) == set()
    assert read_bindings(onnx.load(tmp_path / "two" / "model.onnx")).unused
