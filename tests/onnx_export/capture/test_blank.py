"""A graph captured from a model without weights is the graph of the loaded one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from peft_matrix.architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file

from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import InputError, UsageError
from lora_export.models.factory import FactoryModel
from lora_export.models.hf.blank import blank_tensor
from lora_export.models.hf.huggingface import HuggingFaceModel
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.models.network.calling import call_model
from lora_export.onnx_export.capture.trace import capture
from lora_export.onnx_export.file.bindings import read_bindings
from lora_export.onnx_export.file.save import save_model
from lora_export.onnx_export.file.topology import describe
from lora_export.verification.model.probes import make_probes
from lora_export.verification.runtime.sessions import run_model

# With one layer; the slow tests have all architectures as they are in the matrix.
BY_DEFAULT = [("bert", 1), ("vit", 1)]
INPUTS = {
    "wav2vec2": ("input_values=float32[batch,60]",),
    "llava": ("input_ids=int64[batch,9]<96", "pixel_values=float32[batch,3,16,16]"),
}


def outcome(model, source):
    """The graph with all that is in it; or why there is none, which must not depend on weights."""
    try:
        graph = capture(model, source.inputs)
    except (InputError, UsageError) as error:
        return str(error)
    return describe(graph), graph.SerializeToString(deterministic=True)


def source_of(name, tmp_path, layers=None):
    """The architecture's base; with another number of layers, where one is given."""
    architecture = ARCHITECTURES[name]
    if layers is not None:
        architecture = architecture.with_layers(layers)
    architecture.save(torch.float32, tmp_path)
    base = read_checkpoint(tmp_path)
    return HuggingFaceModel(base, parse_inputs(INPUTS.get(name, ()))), base


@pytest.mark.parametrize(
    ("name", "layers"),
    [*BY_DEFAULT, *(pytest.param(n, None, marks=pytest.mark.slow) for n in ARCHITECTURES)],
)
def test_the_blank_model_is_the_loaded_one_but_for_its_weights(name, layers, tmp_path):
    """Each graph may be shared with other tests: of blank networks the one, of filled the other."""
    source, base = source_of(name, tmp_path, layers)
    blank, loaded = source.blank(base, untied=()), source.load(base, full={}, untied=())
    weights, others = loaded.state_dict(), blank.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in weights.items()} == {
        k: (v.shape, v.dtype) for k, v in others.items()
    }
    assert not any(value.any() for value in others.values())
    constants = dict(loaded.named_buffers())
    for key, value in blank.named_buffers():
        assert key in weights or torch.equal(value, constants[key]), key
    found = outcome(blank, source)
    assert found == outcome(loaded, source)
    assert layers is None or found[0].nodes > 50


@pytest.mark.own_captures
@pytest.mark.parametrize(
    ("stored", "apart", "untied"),
    [
        (1.0, ["lm_head.weight"], ()),
        pytest.param(0.0, [], (), marks=pytest.mark.slow),
        pytest.param(0.0, [], ("lm_head.weight",), marks=pytest.mark.slow),
        pytest.param(1.0, ["lm_head.weight"], ("lm_head.weight",), marks=pytest.mark.slow),
    ],
)
def test_two_values_for_one_tie_make_it_none(tmp_path, untied, stored, apart):
    """transformers separates what is stored with two values, whatever the configuration says.

    A table and its head are all of this network.
    """
    source, base = source_of("llama tied", tmp_path, layers=0)
    assert source.identity(base)["apart"] == []
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + stored
    save_file(tensors, file, metadata={"format": "pt"})
    base = read_checkpoint(tmp_path)
    assert source.identity(base)["apart"] == apart
    shared = []
    for model in (source.blank(base, untied=untied), source.load(base, full={}, untied=untied)):
        found = read_bindings(capture(model, source.inputs)).parameters
        shared.append(found["lm_head.weight"] == found["model.embed_tokens.weight"])
    assert shared == [not untied and not apart] * 2


def anonymous():
    text = Path("/proc/self/status").read_text("ascii")
    return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells RssAnon")
def test_a_blank_tensor_costs_nothing_while_it_is_read():
    before = anonymous()
    tensor = blank_tensor((1 << 14, 1 << 13), torch.float32)
    assert tensor.sum() == 0
    assert anonymous() - before < tensor.nbytes // 10
    tensor += 1
    assert anonymous() - before > tensor.nbytes * 9 // 10


def test_what_is_no_weight_and_no_number_is_no_trouble():
    assert blank_tensor((0, 3), torch.float16).shape == (0, 3)
    assert blank_tensor((), torch.int64).item() == 0
    first, second = (blank_tensor((4,), torch.bfloat16) for _ in range(2))
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


FACTORY = """
from torch import nn
INPUTS = ("x=float32[batch,4]",)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.hoard = self.layer.weight.data
    def forward(self, x):
        return nn.functional.linear(self.layer(x), self.hoard)
def build():
    return Net()
"""


def test_an_alias_of_a_weight_is_still_seen_in_a_factorys_blank_model(tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    source = FactoryModel(f"{tmp_path / 'net.py'}:build", ())
    assert source.identity(None) is None
    with pytest.raises(InputError, match=r"layer\.weight: is used .* as a plain tensor"):
        capture(source.blank(None, untied=()), source.inputs)


@pytest.mark.parametrize("name", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_model_in_half_precision_is_captured_as_such(name, tmp_path):
    layers = 1 if name == "bert" else None
    source, base = source_of(name, tmp_path, layers)
    blank = source.blank(base, untied=(), dtype="float16")
    graph = capture(blank, source.inputs)
    held = {one.name: one.data_type for one in graph.graph.initializer}
    bound = {binding.initializer for binding in read_bindings(graph).parameters.values()}
    assert {held[one] for one in bound} == {TensorProto.FLOAT16}
    weights = source.load(base, full={}, untied=(), dtype="float16").state_dict()
    save_model(graph, tmp_path / "half.onnx", weights)
    [probe, _] = make_probes(source.inputs, 0)
    [actual] = run_model(tmp_path / "half.onnx", [probe])
    model = source.load(base, full={}, untied=())
    inputs = {key: torch.from_numpy(value) for key, value in probe.items()}
    expected = call_model(model, inputs)["logits"].numpy()
    assert actual["logits"].dtype == np.float16
    assert 0 < np.abs(actual["logits"] - expected).max() < 0.01 * np.abs(expected).max()
