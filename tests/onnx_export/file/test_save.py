from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys

import onnx
import pytest
import torch
from google.protobuf.message import DecodeError

from lora_export.errors import OutputError, StorageError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file import external, wire
from lora_export.onnx_export.file.save import opset_of, save_model, written_opset, written_size
from lora_export.verification.model.compare import distance
from lora_export.verification.runtime.sessions import run_model


def test_a_small_model_is_one_file(zoo, tmp_path):
    [written] = save_model(zoo.captured("net").proto(), tmp_path / "model.onnx", {})
    data = (tmp_path / "model.onnx").read_bytes()
    assert (written.path, written.size) == ("model.onnx", len(data))
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_large_weights_go_beside_the_model_under_a_name_made_of_their_content(zoo, tmp_path):
    case = zoo.captured("gpt")
    proto, graph = case.proto(), case.graph()
    path, weights = tmp_path / "model.onnx", zoo.weights_of(case.model, graph)
    model, data = save_model(graph, path, weights, external_threshold=1000)
    assert graph.SerializeToString() == case.data
    assert data.path == f"model-{data.sha256[:8]}.onnx.data"
    for written in (model, data):
        content = (tmp_path / written.path).read_bytes()
        assert written.size == len(content)
        assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert len(list(tmp_path.iterdir())) == 2
    assert external.check(tmp_path / "model.onnx").passed
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    actual = run_model(tmp_path / "model.onnx", case.probes())
    for left, right in zip(case.expected(), actual, strict=True):
        assert distance(left, right).worst < zoo.rounding
    loaded = onnx.load(tmp_path / "model.onnx")
    stored = {one.name: one.raw_data for one in loaded.graph.initializer}
    assert stored == {one.name: one.raw_data for one in proto.graph.initializer}


@pytest.mark.parametrize("threshold", [1 << 30, 1000])
def test_the_same_model_gives_the_same_bytes(zoo, tmp_path, threshold):
    written = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        case, path = zoo.captured("bert"), tmp_path / place / "model.onnx"
        weights = case.weights()
        written.append(save_model(case.graph(), path, weights, external_threshold=threshold))
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["net", "gpt", "bert"])
def test_a_streamed_file_has_the_bytes_of_protobufs_own_serialiser(zoo, tmp_path, name):
    case = zoo.captured(name)
    save_model(case.graph(), tmp_path / "model.onnx", case.weights())
    expected = case.proto().SerializeToString(deterministic=True)
    assert (tmp_path / "model.onnx").read_bytes() == expected


def test_the_opset_is_read_back_without_the_graph(zoo, tmp_path):
    case, path = zoo.captured("net"), tmp_path / "model.onnx"
    save_model(case.graph(), path, case.weights())
    assert written_opset(path) == opset_of(case.graph()) == 20
    content = path.read_bytes()
    for damage in (content[:-1], content[:40], b"\x0f" + content, b"\xff" * 12):
        path.write_bytes(damage)
        with pytest.raises((ValueError, DecodeError)):
            written_opset(path)


@pytest.mark.parametrize("threshold", [1, 1 << 30])
def test_a_model_is_read_back_without_its_data(zoo, tmp_path, threshold):
    case, path = zoo.captured("bert"), tmp_path / "model.onnx"
    save_model(case.graph(), path, case.weights(), external_threshold=threshold)
    whole = onnx.load(path, load_external_data=False)
    with path.open("rb") as file:
        light = wire.without_data(file)
    kept = [one for one in whole.graph.initializer if one.ByteSize() < wire.SHORT - 10]
    assert {one.name for one in kept} <= {one.name for one in light.graph.initializer}
    assert light.ByteSize() < 0.5 * case.proto().ByteSize()
    for model in (whole, light):
        del model.graph.initializer[:]
    assert light == whole


@pytest.mark.parametrize("threshold", [1, 1 << 30])
def test_the_size_is_known_before_a_file_is_written(zoo, tmp_path, threshold):
    case = zoo.captured("bert")
    settings = {"external_threshold": threshold}
    files = save_model(case.graph(), tmp_path / "model.onnx", case.weights(), **settings)
    known = written_size(case.graph(), tmp_path / "model.onnx", case.weights(), **settings)
    assert known == sum(file.size for file in files)


def digest():
    """The digest of a small captured graph."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.GELU())
    proto = capture(model.eval(), parse_inputs(["input=float32[batch,time,8]"]))
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


@pytest.mark.own_captures
def test_another_process_captures_the_same_bytes(tmp_path):
    imports = (
        "import hashlib, torch\n"
        "from lora_export.onnx_export.capture.trace import capture\n"
        "from lora_export.models.inputs.grammar import parse_inputs\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", imports + inspect.getsource(digest) + "print(digest())"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.strip() == digest()


@pytest.mark.parametrize("threshold", [1 << 30, 1000])
def test_an_existing_file_is_not_overwritten(zoo, tmp_path, threshold):
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        save_model(
            zoo.captured("net").proto(), tmp_path / "model.onnx", {}, external_threshold=threshold
        )
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told(zoo, tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        save_model(zoo.captured("net").proto(), tmp_path / "missing" / "model.onnx", {})
