"""onnx --precision end to end: made from the proven float32 file, proven again, verified later."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lora_export.api import export_onnx, verify
from lora_export.errors import FitError, InputError, UsageError, VerificationError
from lora_export.verification.runtime import overflow

LOWER = ["fp16", "int8", "int8-weights", "int4"]
HIDDEN, CLASSES = 64, 5

SOURCE = """
import torch
from torch import nn

INPUTS = ("{inputs}",)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 64)
        self.first = nn.Linear(64, 64)
        self.last = nn.Linear(64, 5)

    def forward(self, x):
        {body}

def build():
    return Net()
"""
TOKENS = "ids=int64[batch,sequence]<100"
BODY = "return {'logits': self.last(torch.relu(self.first(self.table(x).mean(1))))}"
VECTORS = "x=float32[batch,64]"


class Case:
    """A small classifier and an adapter on its first layer, as strong as `strength` says."""

    def __init__(self, folder, *, inputs=TOKENS, body=BODY, strength=0.2, scale=1.0):
        torch.manual_seed(0)
        (folder / "net.py").write_text(SOURCE.format(inputs=inputs, body=body))
        shapes = {"table.weight": (100, 64), "first.weight": (64, 64), "first.bias": (64,),
                  "last.weight": (5, 64), "last.bias": (5,)}  # fmt: skip
        base = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
        base["first.weight"][0, 0] = scale
        factors = {
            "first.lora_A": torch.randn(4, 64) * strength,
            "first.lora_B": torch.randn(64, 4),
        }
        torch.save(base, folder / "base.pt")
        torch.save(factors, folder / "lora.pt")
        self.base, self.adapters = folder / "base.pt", [folder / "lora.pt"]
        self.settings = {"model": f"{folder / 'net.py'}:build", "alpha": 4}

    def export(self, path, **settings):
        return export_onnx(self.base, self.adapters, path, **self.settings, **settings)

    def verify(self, path, **settings):
        given = {"base": self.base, "adapters": self.adapters}
        return verify(path, **given, **self.settings, **settings)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def files(case, tmp_path_factory):
    """The case in every precision: {name: (path, report)}."""
    folder = tmp_path_factory.mktemp("files")
    return {
        name: (folder / f"{name}.onnx", case.export(folder / f"{name}.onnx", precision=name))
        for name in ["fp32", *LOWER]
    }


@pytest.mark.parametrize("name", LOWER)
def test_a_lower_precision(case, files, name):
    path, report = files[name]
    full = files["fp32"][0]
    names = {check.name for check in report.checks}
    assert {"ONNX Runtime = unmerged", f"{name}: nearer to merged than to base"} <= names
    assert report.passed
    told = report.facts["lowered"]
    assert told["bytes"] == path.stat().st_size < full.stat().st_size == told["float32_bytes"]
    (loss,) = told["loss"]
    assert loss["places"] >= 64
    assert 0.8 * loss["places"] <= loss["agree"] <= loss["places"]
    assert 0 < loss["rms"] < loss["effect"]

    recorded = json.loads((path.parent / f"{path.name}.lora_export.json").read_text())["onnx"]
    assert recorded["precision"] == name
    assert recorded["providers"] == ["CPUExecutionProvider"]
    assert recorded["inputs"] == [{"name": "ids", "dtype": "int64", "dims": ["batch", "sequence"]}]
    dtype = "float16" if name == "fp16" else "float32"
    assert (recorded["outputs"][0]["name"], recorded["outputs"][0]["dtype"]) == ("logits", dtype)
    if name != "fp16":
        assert set(recorded["rounded"]) == {"table.weight", "first.weight", "last.weight"}
        assert set(recorded["kept"]) == {"first.bias", "last.bias"}
    assert recorded.get("codes", "") == (told["codes"] if name == "int8" else "")

    feed = {"ids": np.arange(22, dtype=np.int64).reshape(2, 11)}
    far = [onnxruntime.InferenceSession(p).run(None, feed)[0].astype(np.float32)
           for p in (path, full)]  # fmt: skip
    assert 0 < np.abs(far[0] - far[1]).max() < 0.2 * np.abs(far[1]).max()

    assert verify(path).passed
    again = case.verify(path)
    assert f"{name}: nearer to merged than to base" in {check.name for check in again.checks}
    assert any(name in warning for warning in again.warnings)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
def test_the_same_bytes_each_time(case, files, name, tmp_path):
    case.export(tmp_path / "again.onnx", precision=name, verify=False)
    assert (tmp_path / "again.onnx").read_bytes() == files[name][0].read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "again.onnx").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", LOWER)
def test_a_fault_in_the_published_file_is_caught(case, files, name, tmp_path):
    path = tmp_path / "x.onnx"
    model = onnx.load(files[name][0])
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    data = bytearray(weight.raw_data)
    data[1] ^= 0x22
    weight.raw_data = bytes(data)
    onnx.save(model, path)  # without a manifest
    with pytest.raises(VerificationError) as caught:
        case.verify(path, precision=name)
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert failed <= {"every weight bit-equal", "rounded weights, in steps"}
    assert failed


def test_a_file_is_not_of_a_precision_that_it_has_not(case, files):
    for name, said in (("int4", "fp32"), ("fp32", "int4"), ("int8", "int8-weights")):
        with pytest.raises(VerificationError):
            case.verify(files[name][0], precision=said)


@pytest.mark.parametrize(("strength", "told"), [(0.2, 0), (0.003, 1)])
def test_rounding_that_is_large_beside_the_adapter_is_told(strength, told, tmp_path):
    report = Case(tmp_path, strength=strength).export(tmp_path / "x.onnx", precision="int8")
    loss = report.facts["lowered"]["loss"][0]
    assert (loss["rms"] / loss["effect"] >= 0.5) == told
    assert sum("the rounding moves it" in warning for warning in report.warnings) == told
    assert not any("--allow-lossy" in warning for warning in report.warnings)


def test_rounding_that_drowns_the_adapter_is_refused(tmp_path):
    weak = Case(tmp_path, strength=0.002)
    path = tmp_path / "x.onnx"
    with pytest.raises(VerificationError, match="--allow-lossy") as caught:
        weak.export(path, precision="int4")
    (failed,) = [check for check in caught.value.checks if not check.passed]
    assert failed.worst > failed.tolerance
    assert not path.exists()
    assert weak.export(tmp_path / "half.onnx", precision="fp16").passed
    report = weak.export(path, precision="int4", allow_lossy=True)
    assert any("--allow-lossy" in warning for warning in report.warnings)
    with pytest.raises(VerificationError, match="outweighs"):
        weak.verify(path)
    assert weak.verify(path, allow_lossy=True).passed


def test_a_given_tolerance_is_for_the_lower_file(case, tmp_path):
    with pytest.raises(VerificationError, match="int4 = float32, as far as allowed"):
        case.export(tmp_path / "x.onnx", precision="int4", atol=1e-4)
    report = case.export(tmp_path / "x.onnx", precision="int4", atol=5.0)
    derived = next(c for c in report.checks if c.name == "ONNX Runtime = merged")
    assert derived.tolerance < 1e-2


def test_float_inputs_of_a_half_model_are_half(tmp_path):
    body = "return {'logits': self.last(torch.relu(self.first(x)))}"
    case = Case(tmp_path, inputs=VECTORS, body=body)
    report = case.export(tmp_path / "x.onnx", precision="fp16")
    assert report.facts["onnx"]["inputs"][0]["dtype"] == "float16"
    np.savez(tmp_path / "own.npz", x=np.ones((70, 64), np.float32))
    again = case.verify(tmp_path / "x.onnx", inputs=tmp_path / "own.npz")
    assert again.facts["lowered"]["loss"][0]["places"] >= 70


def test_a_weight_too_large_for_float16_is_named(tmp_path):
    case = Case(tmp_path, scale=1e6, strength=2.0)
    with pytest.raises(FitError, match="1e\\+06") as caught:
        case.export(tmp_path / "x.onnx", precision="fp16")
    assert caught.value.problems[0].where == "first.weight"


def test_activations_too_large_for_float16_are_caught(tmp_path):
    """ONNX Runtime's CPU kernels would not see it: they compute in float32 in between."""
    body = "h = self.first(self.table(x).mean(1)) * 6e4\n        return self.last(h * 6e-4)"
    case = Case(tmp_path, body=body, strength=0.5)
    with pytest.raises(VerificationError, match="fp16 in torch: finite"):
        case.export(tmp_path / "x.onnx", precision="fp16")


def test_a_model_that_insists_on_float32_is_refused_in_words(tmp_path):
    wide = "torch.promote_types(h.dtype, torch.float32)"
    body = f"h = self.first(self.table(x).mean(1))\n        return self.last(h.to({wide}))"
    case = Case(tmp_path, body=body)
    with pytest.raises(InputError, match="but not in float16") as caught:
        case.export(tmp_path / "x.onnx", precision="fp16")
    assert "int8-weights" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "bf16"}, "no bfloat16 kernels"),
        ({"precision": "int3"}, "int8-weights"),
        ({"provider": ("cuda", "warp")}, "cuda, warp"),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_work(settings, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        export_onnx("no such base", ["no such adapter"], tmp_path / "x.onnx", **settings)


def test_external_data_of_a_lower_precision(case, tmp_path, monkeypatch):
    from functools import partial

    from lora_export.onnx_export.file import save

    monkeypatch.setattr(save, "save_model", partial(save.save_model, external_threshold=1))
    report = case.export(tmp_path / "x.onnx", precision="int4")
    (data,) = tmp_path.glob("x-*.onnx.data")
    size = data.stat().st_size + (tmp_path / "x.onnx").stat().st_size
    assert report.facts["lowered"]["bytes"] == size
    assert case.verify(tmp_path / "x.onnx").facts["lowered"]["bytes"] == size


def codes_in(path):
    graph = onnx.load(path).graph
    names = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    [kind] = {tensor.data_type for tensor in graph.initializer if tensor.name in names}
    return {onnx.TensorProto.INT8: "signed", onnx.TensorProto.UINT8: "unsigned"}[kind]


@pytest.mark.parametrize(("overflows", "codes"), [(True, "unsigned"), (False, "signed")])
def test_int8_has_the_codes_that_are_best_here(case, tmp_path, monkeypatch, overflows, codes):
    monkeypatch.setattr(overflow, "signed_codes_overflow", lambda: overflows)
    path = tmp_path / "x.onnx"
    report = case.export(path, precision="int8", verify=False)
    assert codes_in(path) == codes == report.facts["lowered"]["codes"]
    assert "overflows" not in report.facts["lowered"]  # nothing was run
    assert not any("overflow" in warning for warning in report.warnings)


@pytest.mark.parametrize("overflows", [True, False])
def test_signed_codes_that_are_asked_for(case, tmp_path, monkeypatch, overflows):
    monkeypatch.setattr(overflow, "signed_codes_overflow", lambda: overflows)
    path = tmp_path / "x.onnx"
    report = case.export(path, precision="int8", int8="signed", allow_lossy=True)
    recorded = json.loads((tmp_path / "x.onnx.lora_export.json").read_text())["onnx"]
    for facts in (report.facts["lowered"], recorded):
        assert (facts["codes"], facts["overflows"]) == ("signed", overflows)
    assert sum("--int8 unsigned" in warning for warning in report.warnings) == overflows
    assert codes_in(path) == "signed"
    again = case.verify(path, allow_lossy=True)
    assert again.facts["lowered"]["codes"] == "signed"


def test_the_cure_of_a_loss_by_overflow(tmp_path, monkeypatch):
    monkeypatch.setattr(overflow, "signed_codes_overflow", lambda: True)
    weak = Case(tmp_path, strength=0.0005)
    with pytest.raises(VerificationError, match="outweighs") as caught:
        weak.export(tmp_path / "x.onnx", precision="int8", int8="signed")
    (failed,) = [check for check in caught.value.checks if not check.passed]
    assert failed.hint.startswith("--int8 unsigned does not overflow here")


def test_codes_of_another_precision_are_refused(tmp_path):
    for settings in ({}, {"precision": "int4"}):
        with pytest.raises(UsageError, match="has no codes") as caught:
            export_onnx("no such base", ["no such"], tmp_path / "x.onnx", int8="signed", **settings)
        assert caught.value.problems[0].where == "--int8"
    with pytest.raises(UsageError, match="signed, unsigned"):
        export_onnx("no such base", ["no such"], precision="int8", int8="both")
