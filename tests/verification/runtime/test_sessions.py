from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.errors import UsageError, VerificationError
from lora_export.verification.runtime import sessions
from lora_export.verification.runtime.sessions import (
    LEVELS,
    find_providers,
    is_mapped,
    open_session,
    run_model,
    try_model,
)


def save(path, *, op="Gemm", weight_shape=(3, 2), opset=20):
    node = helper.make_node(op, ["x", "w"], ["y"], name="the_node")
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(np.ones(weight_shape, np.float32), "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


@pytest.mark.parametrize("level", ["none", *LEVELS])
def test_a_file_runs_on_every_probe(tmp_path, capfd, level):
    path = save(tmp_path / "m.onnx")
    probes = [{"x": np.full((size, 3), 2, np.float32)} for size in (1, 4)]
    outputs = run_model(path, probes, level=level, threads=1)
    assert [one["y"].tolist() for one in outputs] == [[[6.0, 6.0]] * size for size in (1, 4)]
    assert capfd.readouterr() == ("", "")
    assert open_session(path).get_outputs()[0].name == "y"


@pytest.mark.parametrize(
    ("probe", "match"),
    [
        ({"x": np.zeros((1, 5), np.float32)}, "does not run"),
        ({"x": np.zeros((1, 3), np.float64)}, "does not run"),
        ({}, "does not run"),
        ({"z": np.zeros((1, 3), np.float32)}, "does not run"),
    ],
)
def test_a_probe_that_does_not_fit_is_told(tmp_path, capfd, probe, match):
    with pytest.raises(VerificationError, match=match) as caught:
        run_model(save(tmp_path / "m.onnx"), [probe])
    assert caught.value.problems[0].where.startswith("m.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_node_that_fails_is_named(tmp_path):
    path = save(tmp_path / "m.onnx", op="Reshape", weight_shape=(1,))
    model = onnx.load(str(path))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([2, 3]), "w"))
    path.write_bytes(model.SerializeToString())
    run_model(path, [{"x": np.zeros((2, 3), np.float32)}])
    with pytest.raises(VerificationError) as caught:
        run_model(path, [{"x": np.zeros((4, 3), np.float32)}])
    assert caught.value.problems[0].where == "m.onnx: the_node"


@pytest.mark.parametrize("damage", ["op", "shape", "bytes", "missing", "data"])
def test_a_file_that_does_not_load_is_told(tmp_path, capfd, damage):
    path = tmp_path / "m.onnx"
    if damage == "op":
        save(path, op="NoSuchOperator")
    elif damage == "shape":
        save(path, weight_shape=(7, 2))
    elif damage == "bytes":
        path.write_bytes(b"not an onnx file")
    elif damage == "data":
        model = onnx.load(str(save(path)))
        slot = model.graph.initializer[0]
        slot.ClearField("raw_data")
        slot.data_location = TensorProto.EXTERNAL
        slot.external_data.add(key="location", value="gone.data")
        path.write_bytes(model.SerializeToString())
    outputs, check = try_model(path, [], open_session)
    assert outputs == []
    assert check is not None
    assert not check.passed
    assert check.detail
    with pytest.raises(VerificationError, match="does not load"):
        open_session(path)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_provider_is_refused(tmp_path):
    with pytest.raises(UsageError, match="NoSuchProvider") as caught:
        run_model(save(tmp_path / "m.onnx"), [], providers=["NoSuchProvider"])
    assert "CPUExecutionProvider" in str(caught.value)


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_providers_have_short_names(name):
    assert find_providers([name, "cpu"]) == ("CPUExecutionProvider",)
    assert find_providers([]) == ("CPUExecutionProvider",)


def test_providers_that_are_not_here_are_all_told():
    with pytest.raises(UsageError, match="warp, tpu") as caught:
        find_providers(["warp", "cpu", "tpu"])
    assert "CPUExecutionProvider" in caught.value.problems[0].hint


def test_a_session_that_falls_back_is_refused(tmp_path, monkeypatch):
    """As a CUDA build does without a device: it is there, and yet the session runs on the CPU."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    providers = find_providers(["cuda"])
    assert providers == ("CUDAExecutionProvider",)
    with pytest.raises(VerificationError, match="fell back to CPUExecutionProvider"):
        run_model(save(tmp_path / "m.onnx"), [], providers=providers)


@pytest.mark.parametrize("external", [False, True])
def test_only_large_external_data_is_mapped(tmp_path, monkeypatch, external):
    """What a user's own session does by default is proven wherever that fits into memory."""
    path = save(tmp_path / "m.onnx", weight_shape=(3, 500))
    if external:
        onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=1024)
    seen = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda graph, options, **more: seen.append(options) or real(graph, options, **more),
    )
    probes = [{"x": np.full((2, 3), 2, np.float32)}]
    outputs = []
    for limit in (6001, 6000):
        monkeypatch.setattr(sessions, "MAPPED_FROM", limit)
        mapped = external and limit == 6000
        assert is_mapped(path) == mapped
        outputs += run_model(path, probes)
        assert seen[-1].enable_cpu_mem_arena != mapped
        if mapped:
            assert seen[-1].get_session_config_entry("session.disable_prepacking") == "1"
    assert outputs[0]["y"].tobytes() == outputs[1]["y"].tobytes()


def test_a_file_that_is_no_onnx_is_not_mapped(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no")
    assert not is_mapped(tmp_path / "m.onnx")
    assert not is_mapped(tmp_path / "missing.onnx")
