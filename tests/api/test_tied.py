"""Tied embeddings: the merged model equals the unmerged one also after saving and reloading."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lora_export.api import export_onnx, merge
from lora_export.errors import FitError

RANK, ALPHA = 3, 4


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=53, n_positions=32, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    return folder


def adapter(path, *modules):
    draw = torch.Generator().manual_seed(1)
    shapes = {"transformer.wte": (53, 16), "lm_head": (16, 53)}  # (A's, B's) free sizes
    state = {}
    for module in modules:
        a, b = shapes[module]
        state[f"{module}.lora_A"] = torch.randn(RANK, a, generator=draw)
        state[f"{module}.lora_B"] = torch.randn(b, RANK, generator=draw)
    torch.save(state, path)
    return path, state


def delta(state, module):
    return (state[f"{module}.lora_B"] @ state[f"{module}.lora_A"]) * (ALPHA / RANK)


MODULES = {
    "input table": ("transformer.wte",),
    "head": ("lm_head",),
    "both": ("transformer.wte", "lm_head"),
}


@pytest.mark.parametrize("case", MODULES)
def test_untied_by_default(case, gpt2, tmp_path):
    from transformers import AutoModelForCausalLM

    path, state = adapter(tmp_path / "lora.pt", *MODULES[case])
    report = merge(gpt2, [path], tmp_path / "out", alpha=ALPHA)

    shared = load_file(gpt2 / "model.safetensors")["transformer.wte.weight"]
    table = shared + delta(state, "transformer.wte").T if case != "head" else shared
    head = shared + delta(state, "lm_head") if case != "input table" else shared
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(model.transformer.wte.weight, table)
    assert torch.equal(model.lm_head.weight, head)
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    assert any(check.name == "merged = unmerged (torch)" for check in report.checks)
    assert any("untied" in choice for choice in report.plan.choices)


def test_eval_reproduces_loralib(gpt2, tmp_path):
    """loralib merges into the one parameter, and the head changes with it: a warning says so."""
    path, state = adapter(tmp_path / "lora.pt", "transformer.wte")
    report = merge(gpt2, [path], tmp_path / "out", alpha=ALPHA, tied="eval")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    shared = load_file(gpt2 / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(merged["transformer.wte.weight"], shared + delta(state, "transformer.wte").T)
    assert "lm_head.weight" not in merged
    assert "merged elements" in {check.name for check in report.checks}
    assert any("differs from the unmerged model" in warning for warning in report.warnings)


def test_error_refuses(gpt2, tmp_path):
    path, _ = adapter(tmp_path / "lora.pt", "transformer.wte")
    with pytest.raises(FitError, match="tied"):
        merge(gpt2, [path], tmp_path / "out", alpha=ALPHA, tied="error")


def test_onnx_unties_too(gpt2, tmp_path):
    path, _ = adapter(tmp_path / "lora.pt", "transformer.wte")
    report = export_onnx(gpt2, [path], tmp_path / "out.onnx", alpha=ALPHA)
    assert any(check.name == "ONNX Runtime = unmerged" for check in report.checks)
