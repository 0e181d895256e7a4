"""onnx end to end: Hugging Face folders and factories, forms of output, and what is refused."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lora_export.api import export_onnx, verify
from lora_export.errors import FitError, OutputError, UsageError, VerificationError

ALPHA, RANK = 6, 4


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT classifier and an adapter with query, value and a new classification head."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("bert")
    BertForSequenceClassification(config).save_pretrained(folder)
    adapter = {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.randn(3)}
    for name in ("query", "value"):
        module = f"bert.encoder.layer.0.attention.self.{name}"
        adapter[f"{module}.lora_A"] = torch.randn(RANK, 16) * 0.3
        adapter[f"{module}.lora_B"] = torch.randn(16, RANK) * 0.3
    torch.save(adapter, folder.parent / "lora.pt")
    return folder, folder.parent / "lora.pt"


FACTS = {"alpha": ALPHA, "fan_in_fan_out": False}


def test_a_hugging_face_folder(bert, tmp_path):
    base, adapter = bert
    report = export_onnx(base, [adapter], tmp_path / "bert.onnx", **FACTS)
    names = {check.name for check in report.checks}
    assert {"ONNX Runtime = unmerged", "ONNX Runtime = merged", "every weight bit-equal"} <= names

    session = onnxruntime.InferenceSession(tmp_path / "bert.onnx")
    inputs = {value.name: value.shape for value in session.get_inputs()}
    assert inputs == {
        name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    ids = np.arange(22, dtype=np.int64).reshape(2, 11)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    (logits,) = session.run(["logits"], feed)
    assert logits.shape == (2, 3)

    assert verify(tmp_path / "bert.onnx").passed
    again = verify(tmp_path / "bert.onnx", base=base, adapters=[adapter])
    assert "ONNX Runtime = unmerged" in {check.name for check in again.checks}


def test_the_same_inputs_give_the_same_bytes(bert, tmp_path):
    base, adapter = bert
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export_onnx(base, [adapter], tmp_path / name / "x.onnx", **FACTS, verify=False)
    assert (tmp_path / "a/x.onnx").read_bytes() == (tmp_path / "b/x.onnx").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a/x.onnx").read_bytes()


def test_a_fault_in_the_finished_file_is_caught(bert, tmp_path):
    base, adapter = bert
    path = tmp_path / "bert.onnx"
    export_onnx(base, [adapter], path, **FACTS)
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if "query.weight" in t.name)
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    with pytest.raises(VerificationError) as caught:
        verify(path, base=base, adapters=[adapter])
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert {"digests", "every weight bit-equal"} <= failed


def test_the_users_own_inputs_are_the_probes(bert, tmp_path):
    base, adapter = bert
    ids = np.full((2, 9), 7, dtype=np.int64)
    np.savez(
        tmp_path / "own.npz", input_ids=ids, attention_mask=ids * 0 + 1, token_type_ids=ids * 0
    )
    own = tmp_path / "own.npz"
    report = export_onnx(base, [adapter], tmp_path / "x.onnx", **FACTS, inputs=own)
    assert report.passed


def test_a_tolerance_that_proves_nothing_is_refused(bert, tmp_path):
    base, adapter = bert
    with pytest.raises(VerificationError, match="vacuous"):
        export_onnx(base, [adapter], tmp_path / "x.onnx", **FACTS, atol=100.0)
    assert not (tmp_path / "x.onnx").exists()


def test_an_output_that_exists_is_kept(bert, tmp_path):
    base, adapter = bert
    (tmp_path / "x.onnx").write_bytes(b"precious")
    with pytest.raises(OutputError):
        export_onnx(base, [adapter], tmp_path / "x.onnx", **FACTS)
    assert (tmp_path / "x.onnx").read_bytes() == b"precious"


SOURCE = """
import torch
from torch import nn

INPUTS = ("x=float32[batch,6]",)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(6, 6, bias=False)
        self.idle = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        {body}

def build():
    return Net()
"""


def factory(tmp_path, body, *modules):
    (tmp_path / "net.py").write_text(SOURCE.format(body=body))
    torch.manual_seed(0)
    torch.save({f"{n}.weight": torch.randn(6, 6) for n in ("used", "idle")}, tmp_path / "base.pt")
    adapter = {
        f"{module}.lora_{role}": torch.randn(*shape)
        for module in modules
        for role, shape in (("A", (2, 6)), ("B", (6, 2)))
    }
    torch.save(adapter, tmp_path / "lora.pt")
    settings = {"model": f"{tmp_path / 'net.py'}:build", "alpha": ALPHA}
    return (tmp_path / "base.pt", [tmp_path / "lora.pt"], tmp_path / "x.onnx"), settings


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("return self.used(x)", ["output"]),
        ("return self.used(x), x", ["output_0", "output_1"]),
        ('return {"y": self.used(x), "z": x * 2}', ["y", "z"]),
    ],
)
def test_plain_linears_of_a_factory_tell_their_orientation(body, outputs, tmp_path):
    arguments, settings = factory(tmp_path, body, "used")
    export_onnx(*arguments, **settings)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    assert [value.name for value in session.get_outputs()] == outputs
    manifest = json.loads((tmp_path / "x.onnx.lora_export.json").read_text())
    assert manifest["updates"]["used.weight"][0]["fan_in_fan_out"] is False


def test_an_adapted_module_that_is_never_called_is_refused(tmp_path):
    arguments, settings = factory(tmp_path, "return self.used(x)", "used", "idle")
    with pytest.raises(FitError, match="idle"):
        export_onnx(*arguments, **settings)
    assert not (tmp_path / "x.onnx").exists()


def test_a_weight_used_without_its_module_is_refused(tmp_path):
    body = "return x @ self.used.weight.T"
    arguments, settings = factory(tmp_path, body, "used")
    with pytest.raises(FitError, match="never calls"):
        export_onnx(*arguments, **settings)


def test_a_model_that_cannot_run_on_the_declared_inputs(tmp_path):
    arguments, settings = factory(tmp_path, "return self.used(x[:, :5])", "used")
    with pytest.raises(UsageError, match="--input"):
        export_onnx(*arguments, **settings)


def test_external_data_is_published_with_the_model(bert, tmp_path, monkeypatch):
    from functools import partial

    from lora_export.onnx_export import export

    smallest = partial(export.save_model, external_threshold=1)
    monkeypatch.setattr(export, "save_model", smallest)
    base, adapter = bert
    report = export_onnx(base, [adapter], tmp_path / "x.onnx", **FACTS)
    assert report.passed
    (data,) = tmp_path.glob("x-*.onnx.data")
    assert len(list(tmp_path.iterdir())) == 3
    assert onnxruntime.InferenceSession(tmp_path / "x.onnx").get_inputs()
    assert verify(tmp_path / "x.onnx").passed
    with data.open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(VerificationError, match="digests"):
        verify(tmp_path / "x.onnx")
