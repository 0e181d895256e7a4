"""Graphs that generate text step by step, of every kind of decoder; and what has no such graph."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from documents import blocks
from peft_matrix.architectures import ARCHITECTURES
from peft_matrix.making import make_adapter
from peft_matrix.options import OPTIONS
from peft_matrix.warned import WHILE_SAVING, ignored

from lora_export.api import export_onnx, verify
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import UsageError
from lora_export.models.choose import folder_model
from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.verification.runtime import generation
from lora_export.verification.runtime.generation import LOGITS
from lora_export.verification.runtime.generation_loss import measure_generation
from lora_export.verification.runtime.sessions import open_session

pytestmark = ignored(WHILE_SAVING)
PROVEN = {
    "ONNX Runtime = merged",
    "ONNX Runtime = unmerged",
    "same graph as the base",
    "prompt = plain model",
    "each step with a past = plain model",
    "generates as model.generate",
}
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0}
TWO_KINDS = {
    "layer_types": ["linear_attention", "full_attention"], "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "head_dim": 8,
}  # fmt: skip
# Beside those of the matrix: windows shorter than what is generated, no position_ids, one head of
# keys, keys and values of two sizes, a factor for attention's sinks.
MORE = {
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=8),
    "gemma3, two kinds of layers": lambda: hf.Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=8),
    "bloom": lambda: hf.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: hf.FalconConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    ),
    "opt": lambda: hf.OPTConfig(
        vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64,
    ),
}  # fmt: skip
OF_MATRIX = ("llama", "llama tied", "qwen3", "gpt-neox", "mixtral")


def made(name, folder):
    """(base, adapter) of the matrix's architecture, or of one of MORE."""
    base, adapter = folder / "base", folder / "adapter"
    if name in ARCHITECTURES:
        ARCHITECTURES[name].save(torch.float32, base)
        make_adapter(ARCHITECTURES[name], OPTIONS["plain"], base, adapter)
        return base, adapter
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(MORE[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(base)
    targets = r".*\.(q_proj|v_proj|query_key_value)"
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=4))
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(adapter)
    return base, adapter


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """(base, adapter, graph, report) of a GPT-2 with keys and values."""
    folder = tmp_path_factory.mktemp("gpt2")
    base, adapter = made("gpt2", folder)
    report = export_onnx(base, [adapter], folder / "gpt2.onnx", kv_cache=True)
    return base, adapter, folder / "gpt2.onnx", report


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OF_MATRIX, *MORE])
def test_generates_as_transformers_does(name, tmp_path):
    base, adapter = made(name, tmp_path)
    report = export_onnx(base, [adapter], tmp_path / "out.onnx", kv_cache=True)
    checks = {check.name: check for check in report.checks}
    assert checks.keys() >= PROVEN
    assert checks["generates as model.generate"].detail == "128 tokens"


def test_its_face(gpt2):
    _, _, path, report = gpt2
    assert {check.name for check in report.checks} >= PROVEN
    graph = onnx.load(path).graph
    past = {
        f"past_key_values.{layer}.{part}": ["batch", 4, "past", 8]
        for layer in (0, 1)
        for part in ("key", "value")
    }
    assert {value.name: dims(value) for value in graph.input} == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "past + sequence"],
        "position_ids": ["batch", "sequence"],
        **past,
    }
    longer = ["batch", 4, "past + sequence", 8]
    assert {value.name: dims(value) for value in graph.output} == {
        "logits": ["batch", "sequence", 96],
        **{name.replace("past_key_values", "present"): longer for name in past},
    }


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_weights_are_stored_once(gpt2):
    base, _, path, _ = gpt2
    stored = sum(np.prod(tensor.dims, dtype=int) for tensor in onnx.load(path).graph.initializer)
    model = hf.GPT2LMHeadModel.from_pretrained(base)
    assert stored < 1.02 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
def test_it_is_proven_again_by_its_manifest(gpt2):
    base, adapter, path, _ = gpt2
    manifest = json.loads(path.with_name(f"{path.name}.lora_export.json").read_text())
    assert manifest["options"]["kv_cache"] is True
    again = verify(path, base=base, adapters=[adapter])
    assert {check.name for check in again.checks} >= PROVEN
    assert "kv_cache True" in " ".join(again.warnings)


def test_without_a_manifest_it_must_be_said(gpt2, tmp_path):
    base, adapter, path, _ = gpt2
    alone = tmp_path / path.name
    alone.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="keys and values") as caught:
        verify(alone, base=base, adapters=[adapter])
    assert "--kv-cache" in caught.value.problems[0].hint


def test_the_loop_of_the_documentation(gpt2, root):
    """It generates what model.generate does, for texts of several lengths at once."""
    base, adapter, path, _ = gpt2
    page = root / "docs" / "onnx.md"
    [code] = [b.text for b in blocks(page) if b.language == "python" and "prompts" in b.text]
    prompts = [[5, 6, 7, 8, 9], [11, 12], [13, 14, 15]]
    names = {"path": str(path), "prompts": prompts, "new_tokens": 12, "eos": -1}
    exec(compile(code, "docs/onnx.md", "exec"), names)

    from peft import PeftModel

    model = PeftModel.from_pretrained(hf.GPT2LMHeadModel.from_pretrained(base), adapter)
    model = model.merge_and_unload().eval()
    for prompt, found in zip(prompts, names["texts"], strict=True):
        ids = torch.tensor([prompt])
        model.generation_config = hf.GenerationConfig(
            do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids))
        assert found == wanted[0].tolist()

    longest = max(len(text) for text in names["texts"])
    names |= {"prompts": prompts[:1], "eos": names["texts"][0][len(prompts[0])]}
    exec(compile(code, "docs/onnx.md", "exec"), names)
    assert len(names["texts"][0]) == len(prompts[0]) + 1 < longest


def config_only(folder, config, architecture):
    config.architectures = [architecture]
    config.save_pretrained(folder)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return read_checkpoint(folder)


REFUSED = {
    "an encoder": (
        lambda: (hf.BertConfig(**SMALL), "BertForSequenceClassification"),
        "BertForSequenceClassification generates no text",
    ),
    "a decoder without a head for words": (
        lambda: (hf.LlamaConfig(**GROUPED), "LlamaModel"),
        "LlamaModel generates no text",
    ),
    "a state that is no keys and values": (
        lambda: (
            hf.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2),
            "MambaForCausalLM",
        ),
        "keeps LinearAttentionLayer in its cache",
    ),
    "two kinds of memory": (
        lambda: (hf.Qwen3NextConfig(**GROUPED, **TWO_KINDS), "Qwen3NextForCausalLM"),
        "keeps LinearAttentionLayer in its cache",
    ),
    "a table of few positions": (
        lambda: (
            hf.LlamaConfig(**{**GROUPED, "max_position_embeddings": 8}),
            "LlamaForCausalLM",
        ),
        "tokens in all, too few for a proof",
    ),
    "images in the text": (
        lambda: (ARCHITECTURES["llava"].config(), "LlavaForConditionalGeneration"),
        "takes images in its first step only",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_graph(case, tmp_path):
    config, match = REFUSED[case]
    base = config_only(tmp_path, *config())
    with pytest.raises(UsageError, match=match) as caught:
        CachedDecoder(folder_model(base, ()))
    assert caught.value.problems[0].where == "--kv-cache"
    assert "leave --kv-cache out" in caught.value.problems[0].hint


# The number of the padding token is of no matter for the positions of these models.
PADDED = {
    "GPT-2": (hf.GPT2Config, "GPT2LMHeadModel", {"n_positions": 48, "n_embd": 32, "n_head": 4}),
    "Llama": (hf.LlamaConfig, "LlamaForCausalLM", {**GROUPED, "max_position_embeddings": 48}),
    "Phi-3": (hf.Phi3Config, "Phi3ForCausalLM", {**GROUPED, "max_position_embeddings": 48}),
}


@pytest.mark.parametrize("pad", [0, 47, 48, 95])
@pytest.mark.parametrize("case", PADDED)
def test_a_padding_token_near_the_end_of_the_positions(case, pad, tmp_path):
    kind, name, settings = PADDED[case]
    base = config_only(tmp_path, kind(**{**settings, "pad_token_id": pad, "vocab_size": 96}), name)
    assert CachedDecoder(folder_model(base, ())).longest == 48


def test_a_factory_and_described_inputs(gpt2, tmp_path):
    base, adapter, _, _ = gpt2
    with pytest.raises(UsageError, match="how the network of --model keeps its past"):
        export_onnx(base, [adapter], tmp_path / "x.onnx", model="a:b", kv_cache=True)
    described = ["ids=int64[batch]"]
    with pytest.raises(UsageError, match="--kv-cache names the inputs itself"):
        export_onnx(base, [adapter], tmp_path / "x.onnx", kv_cache=True, input=described)


ALL, FIRST = (f"{LOGITS} of {what}" for what in ("each step with a past", "a prompt"))
LOWER = [
    "int8",
    "int4",
    *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp16", "int8-weights")),
]


@pytest.mark.parametrize("precision", LOWER)
def test_a_lower_precision_is_proven_step_by_step(gpt2, precision, tmp_path, root):
    base, adapter, _, _ = gpt2
    path = tmp_path / "x.onnx"
    report = export_onnx(base, [adapter], path, kv_cache=True, precision=precision)
    names = {check.name for check in report.checks}
    assert names >= (PROVEN if precision == "fp16" else PROVEN - {"same graph as the base"})
    assert f"{precision}: nearer to merged than to base" in names
    losses = {loss["output"]: loss for loss in report.facts["lowered"]["loss"]}
    assert losses.keys() == {LOGITS, FIRST, ALL}
    assert losses[ALL]["places"] == 128
    assert losses[ALL]["agree"] >= 64
    assert all(0 < loss["rms"] < 0.5 * loss["effect"] for loss in losses.values())

    recorded = json.loads(path.with_name("x.onnx.lora_export.json").read_text())["onnx"]
    wanted = "float16" if precision == "fp16" else "float32"
    floats = [v for v in [*recorded["inputs"], *recorded["outputs"]] if v["dtype"] != "int64"]
    assert {value["dtype"] for value in floats} == {wanted}
    assert len(floats) == 9
    again = verify(path, base=base, adapters=[adapter])
    assert {loss["output"] for loss in again.facts["lowered"]["loss"]} == losses.keys()

    [code] = [b.text for b in blocks(root / "docs" / "onnx.md") if "prompts" in b.text]
    names = {"path": str(path), "prompts": [[5, 6, 7], [8]], "new_tokens": 3, "eos": -1}
    exec(compile(code, "docs/onnx.md", "exec"), names)
    assert [len(text) for text in names["texts"]] == [6, 4]


def test_keys_and_values_in_disorder_are_a_loss(gpt2, monkeypatch):
    """What the checks of a lowered file see where a step reads another layer's past."""
    from peft import PeftModel

    base, adapter, path, _ = gpt2
    plain = folder_model(read_checkpoint(base), ())

    def bare():
        return hf.GPT2LMHeadModel.from_pretrained(base).eval()

    def merged():
        return PeftModel.from_pretrained(bare(), adapter).merge_and_unload().eval()

    def measured():
        return measure_generation(
            path, CachedDecoder(plain), merged, bare, seed=0, opener=open_session
        )

    assert [loss.output for loss in measured()] == [FIRST, ALL]
    assert all(loss.relative < 1e-5 and loss.agree == loss.places for loss in measured())
    step = generation.Decoder.step

    def swapped(decoder, ids, mask):
        past = decoder._past
        pairs = [(f"past_key_values.{n}.key", past[f"past_key_values.{n}.key"]) for n in (0, 1)]
        past.update(zip([pairs[1][0], pairs[0][0]], [pairs[0][1], pairs[1][1]], strict=True))
        return step(decoder, ids, mask)

    monkeypatch.setattr(generation.Decoder, "step", swapped)
    first, later = measured()
    assert first.relative < 1e-5
    assert later.relative > 0.01
