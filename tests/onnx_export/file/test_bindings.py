from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from lora_export.errors import FitError, InputError
from lora_export.onnx_export.file.bindings import (
    KEY,
    Binding,
    Bindings,
    place_weights,
    read_bindings,
    write_bindings,
)
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.file.weight_blocks import turn
from lora_export.verification.model.compare import distance
from lora_export.verification.runtime.sessions import run_model


@pytest.mark.parametrize("name", ["net", "gpt", "bert", "roberta", "llama", "gpt2"])
def test_one_capture_serves_other_weights(zoo, tmp_path, name):
    case, other = zoo.captured(name), zoo.build(name, seed=5)
    graph = case.graph()
    save_model(graph, tmp_path / "model.onnx", zoo.weights_of(other, graph))
    outputs = run_model(tmp_path / "model.onnx", case.probes())
    for expected, base, actual in zip(case.expected(other), case.expected(), outputs, strict=True):
        assert distance(expected, actual).worst < zoo.rounding
        assert distance(base, actual).worst > 1e-3


@pytest.mark.parametrize("name", ["net", "gpt", "bert", "roberta", "llama", "gpt2"])
def test_every_weight_of_the_state_dict_is_bound_or_told_unused(zoo, name):
    case = zoo.captured(name)
    bindings = read_bindings(case.proto())
    assert {*bindings.parameters, *bindings.unused} == set(case.model.state_dict())
    arrays = {one.name: numpy_helper.to_array(one) for one in case.proto().graph.initializer}
    for one, binding in bindings.parameters.items():
        value = case.model.state_dict()[one].numpy()
        assert np.array_equal(turn(value, binding.perm), arrays[binding.initializer])
    used = {one.initializer for one in bindings.parameters.values()}
    assert set(arrays) == used | set(bindings.constants)


def test_the_table_survives_writing_and_reading():
    model = onnx.ModelProto()
    model.metadata_props.add(key="other", value="kept")
    table = Bindings(
        {"a": Binding("a.T", (1, 0)), "b": Binding("b", kind="buffer")}, ("c",), ("val_1",)
    )
    for _ in range(2):
        write_bindings(model, table)
    assert read_bindings(model) == table
    assert [entry.key for entry in model.metadata_props] == ["other", KEY]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"parameters": []},
        {"parameters": {"a": {"initializer": "a", "transform": "rotate", "kind": "parameter"}}},
        {"parameters": {"a": {"initializer": "a", "transform": "transpose", "kind": "parameter",
                              "perm": [0, 2]}}},
        {"parameters": {"a": {"initializer": "a", "transform": "transpose", "kind": "parameter"}}},
        {"parameters": {"a": {"initializer": "a", "transform": "identity", "kind": "thing"}}},
        {"parameters": {"a": {"transform": "identity", "kind": "parameter"}}},
        {"unused": None},
    ],
)  # fmt: skip
def test_a_damaged_table_is_refused(change):
    table = {"version": 1, "parameters": {}, "unused": [], "constants": []} | change
    model = onnx.ModelProto()
    model.metadata_props.add(key=KEY, value=json.dumps(table))
    with pytest.raises(InputError, match="damaged"):
        read_bindings(model)


@pytest.mark.parametrize("text", ["", "no json", "[]", "3"])
def test_text_that_is_no_table_is_refused(text):
    model = onnx.ModelProto()
    model.metadata_props.add(key=KEY, value=text)
    with pytest.raises(InputError, match="damaged"):
        read_bindings(model)


def test_a_model_without_table_is_refused():
    with pytest.raises(InputError, match=r"has no lora_export\.bindings"):
        read_bindings(onnx.ModelProto())


@pytest.mark.parametrize(
    ("tensors", "matches"),
    [
        ({"last.wieght": torch.zeros(40, 40)}, ["last.wieght: is bound to no initializer"]),
        ({"dead.bias": torch.zeros(3)}, ["dead.bias: .*no output of the graph depends on"]),
        ({"hidden.weight": torch.zeros(256, 40)}, [r"\[256, 40\], the graph holds .*40, 256"]),
        ({"last.weight": torch.zeros(1600)}, [r"is float32\[1600\]"]),
        ({"last.weight": torch.zeros(40, 40).double()}, [r"is float64\[40, 40\]"]),
        ({"last.weight": torch.zeros(40, 40).bfloat16()}, [r"is bfloat16\[40, 40\]"]),
        ({"no": torch.zeros(1), "nor": torch.zeros(1)}, ["no: is bound", "nor: is bound"]),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_all_at_once(zoo, tmp_path, tensors, matches):
    case = zoo.captured("net")
    with pytest.raises(FitError) as caught:
        save_model(case.graph(), tmp_path / "x.onnx", {**case.weights(), **tensors})
    assert len(caught.value.problems) == len(matches)
    for match in matches:
        assert pytest.RaisesExc(FitError, match=match).matches(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_tied_names_must_agree(zoo):
    case = zoo.captured("gpt")
    weights = case.weights()
    table = weights["wte.weight"] + 1
    place_weights(case.graph(), {**weights, "wte.weight": table, "head.weight": table.copy()})
    place_weights(case.graph(), {k: v for k, v in weights.items() if k != "head.weight"})
    with pytest.raises(FitError, match="weight: differs from the tensor it is tied to"):
        place_weights(case.graph(), {**weights, "wte.weight": table, "head.weight": table + 1})
    nan = table.copy()
    nan.view(np.uint32)[0, 0] = 0x7FC00001  # a NaN equals no number, but it is the same bits
    place_weights(case.graph(), {**weights, "wte.weight": nan, "head.weight": nan.copy()})


def test_a_graph_is_not_written_with_less_than_all_weights(zoo, tmp_path):
    case = zoo.captured("net")
    weights = case.weights()
    del weights["last.weight"], weights["conv.bias"]
    with pytest.raises(FitError) as caught:
        save_model(case.graph(), tmp_path / "x.onnx", weights)
    assert {one.where for one in caught.value.problems} == {"last.weight", "conv.bias"}
    assert "no value is given for it" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
