"""A model that is read while it runs gives the bits of the same model in memory."""

import json

import pytest
import torch
from peft import LoraConfig
from peft_folders import llama, save
from peft_matrix.architectures import ARCHITECTURES, DTYPES
from safetensors.torch import load_file, save_file

from lora_export import merge
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import UsageError
from lora_export.models.hf.huggingface import HuggingFaceModel
from lora_export.models.network.calling import call_model
from lora_export.models.network.casting import to_float64
from lora_export.models.streaming.lockstep import Lockstep
from lora_export.models.streaming.streamed_weight import StreamedWeight
from lora_export.verification.model import witnesses


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_bits_are_those_of_the_model_in_memory(architecture, dtype, tmp_path, streamed):
    architecture.save(DTYPES[dtype], tmp_path)
    base = read_checkpoint(tmp_path)
    source = HuggingFaceModel(base, ())
    whole, streamed = (way(base, full={}, untied=()) for way in (source.load, source.stream))
    inputs = architecture.inputs()
    assert any(isinstance(weight, StreamedWeight) for weight in streamed.parameters())
    expected = call_model(whole, inputs)
    assert same(expected, call_model(streamed, inputs))
    wide = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    exact = call_model(to_float64(whole), wide)
    assert same(exact, call_model(to_float64(streamed), wide))
    again = source.stream(base, full={}, untied=())
    both = Lockstep().run([lambda: call_model(again, inputs), lambda: call_model(streamed, wide)])
    assert same(expected, both[0])
    assert same(exact, both[1])


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_modules_that_stay_in_float32_are_found_in_half_precision(name, tmp_path, streamed):
    """transformers copies the stand-ins of T5's `wo`, which it keeps in float32."""
    ARCHITECTURES[name].save(torch.float32, tmp_path)
    base = read_checkpoint(tmp_path)
    source = HuggingFaceModel(base, ())
    whole, read = (
        way(base, full={}, untied=(), dtype="float16") for way in (source.load, source.stream)
    )
    assert [p.dtype for p in whole.parameters()] == [p.dtype for p in read.parameters()]
    assert same(*(call_model(model, ARCHITECTURES[name].inputs()) for model in (whole, read)))


def test_a_tie_stored_apart_under_another_name_is_separate(tmp_path, streamed):
    """Llava's head has another name in files than in the model of transformers 5."""
    ARCHITECTURES["llava"].save(torch.float32, tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = table.replace("model.embed_tokens", "lm_head")
    tensors[head] = tensors[table] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = read_checkpoint(tmp_path)
    source = HuggingFaceModel(base, ())
    found = []
    for way in (source.load, source.stream):
        model = way(base, full={}, untied=())
        weight = model.get_output_embeddings().weight
        found.append(weight.read() if isinstance(weight, StreamedWeight) else weight.detach())
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_witnesses_run_in_turn_where_the_weights_cannot_be_read(tmp_path, streamed, monkeypatch):
    """Ten models in memory at once would take more than the guard allows for one."""
    save(tmp_path, llama(), LoraConfig(target_modules=["q_proj"], r=4))

    def refuse(*_, **__):
        raise UsageError("transformers converts a tensor")

    monkeypatch.setattr(HuggingFaceModel, "stream", refuse)
    monkeypatch.setattr(witnesses, "run_together", refuse)
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", require="model")
    assert report.passed
