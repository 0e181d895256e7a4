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


def masked(name):
    """(model, its input table's module, its vocabulary and width) of a masked language model."""
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DistilBertConfig,
        DistilBertForMaskedLM,
        RobertaConfig,
        RobertaForMaskedLM,
    )

    small = {
        "vocab_size": 53,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
    }
    torch.manual_seed(0)
    if name == "distilbert":
        config = DistilBertConfig(
            vocab_size=53, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=40
        )
        return DistilBertForMaskedLM(config), "distilbert.embeddings.word_embeddings"
    if name == "bert":
        return BertForMaskedLM(BertConfig(**small)), "bert.embeddings.word_embeddings"
    return RobertaForMaskedLM(RobertaConfig(**small)), "roberta.embeddings.word_embeddings"


@pytest.mark.parametrize("with_transformers", [True, False])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_heads_of_other_names_and_their_biases(name, with_transformers, tmp_path, monkeypatch):
    """Never a head that the model does not know: right with transformers, else refused."""
    model, module = masked(name)
    model.save_pretrained(tmp_path / "base")
    state = {f"{module}.lora_A": torch.randn(RANK, 53), f"{module}.lora_B": torch.randn(16, RANK)}
    torch.save(state, tmp_path / "lora.pt")
    arguments = (tmp_path / "base", [tmp_path / "lora.pt"], tmp_path / "out")
    if not with_transformers:
        monkeypatch.setattr("lora_export.models.choose.transformers_installed", lambda: False)
        if name != "distilbert":
            with pytest.raises(FitError, match="head whose name is not known"):
                merge(*arguments, alpha=ALPHA)
            return
    report = merge(*arguments, alpha=ALPHA)
    reloaded, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    head = reloaded.get_output_embeddings().weight
    assert torch.equal(head, model.get_output_embeddings().weight)
    assert not torch.equal(head, reloaded.get_input_embeddings().weight)
    names = {check.name for check in report.checks}
    assert ("merged = unmerged (torch)" in names) is with_transformers


FACTORY = """
import torch
from torch import nn

INPUTS = ("ids=int64[batch,sequence]<11",)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.mid = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.mid(self.table(ids)))

def build():
    return Net()
"""
SIZES = {"table": (11, 6), "head": (6, 11), "mid": (6, 6)}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("stored", [("table", "head"), ("table",), ("head",)])
@pytest.mark.parametrize("adapted", [("table",), ("head",), ("table", "head"), ("mid",)])
def test_factories_in_every_combination(adapted, stored, prefix, tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    torch.manual_seed(0)
    shared = torch.randn(11, 6)
    base = {f"{prefix}{name}.weight": shared.clone() for name in stored}
    base |= {f"{prefix}mid.weight": torch.randn(6, 6), f"{prefix}mid.bias": torch.randn(6)}
    torch.save(base, tmp_path / "base.pt")
    state = {}
    for name in adapted:
        state[f"{name}.lora_A"] = torch.randn(RANK, SIZES[name][0])
        state[f"{name}.lora_B"] = torch.randn(SIZES[name][1], RANK)
    torch.save(state, tmp_path / "lora.pt")
    settings = {"alpha": ALPHA, "model": f"{tmp_path / 'net.py'}:build"}
    report = merge(
        tmp_path / "base.pt", [tmp_path / "lora.pt"], tmp_path / "out.safetensors", **settings
    )
    assert report.passed
    merged = load_file(tmp_path / "out.safetensors")
    table = shared + delta(state, "table").T if "table" in adapted else shared
    head = shared + delta(state, "head") if "head" in adapted else shared
    separate = adapted != ("mid",)
    wanted = {"table": table, "head": head}
    for name, value in wanted.items():
        if separate or name in stored:
            assert torch.equal(merged[f"{prefix}{name}.weight"], value)
        else:
            assert f"{prefix}{name}.weight" not in merged
    assert any("one parameter" in warning for warning in report.warnings) is separate


def tied_file(tmp_path, adapter, **settings):
    shared = torch.arange(12.0).view(4, 3)
    base = {"emb.weight": shared, "out.weight": shared, "mid.weight": torch.ones(3, 5)}
    torch.save(base, tmp_path / "base.pt")
    torch.save(adapter, tmp_path / "lora.pt")
    report = merge(
        tmp_path / "base.pt",
        [tmp_path / "lora.pt"],
        tmp_path / "out.safetensors",
        alpha=1,
        **settings,
    )
    return report, load_file(tmp_path / "out.safetensors"), shared


LOW = {"mid.lora_A": torch.ones(1, 5), "mid.lora_B": torch.ones(3, 1)}


def test_a_tie_is_seen_in_the_storage(tmp_path):
    adapter = {"emb.lora_A": torch.ones(1, 4), "emb.lora_B": torch.ones(3, 1)}
    report, merged, shared = tied_file(tmp_path, adapter)
    assert torch.equal(merged["emb.weight"], shared + 1)
    assert torch.equal(merged["out.weight"], shared)
    assert any("one parameter" in warning for warning in report.warnings)


def test_a_full_tensor_replaces_every_name_of_the_parameter(tmp_path):
    full = torch.full((4, 3), 7.0)
    report, merged, _ = tied_file(tmp_path, {**LOW, "emb.weight": full})
    assert torch.equal(merged["emb.weight"], full)
    assert torch.equal(merged["out.weight"], full)
    assert any("replaces all" in choice for choice in report.plan.choices)


def test_two_full_tensors_for_one_parameter_are_refused(tmp_path):
    full = torch.full((4, 3), 7.0)
    with pytest.raises(FitError, match="different"):
        tied_file(tmp_path, {**LOW, "emb.weight": full, "out.weight": full + 1})


def test_a_module_under_two_names_stays_one(tmp_path):
    low = {"lora_A": torch.ones(1, 4), "lora_B": torch.ones(3, 1)}
    adapter = {f"{name}.{key}": value for name in ("emb", "out") for key, value in low.items()}
    report, merged, shared = tied_file(tmp_path, adapter)
    assert torch.equal(merged["emb.weight"], merged["out.weight"])
    assert torch.equal(merged["emb.weight"], shared + 1)
    assert not report.plan.separated


def test_one_tensor_updated_twice_by_one_adapter_is_refused(tmp_path):
    twice = {f"module.{name}": value for name, value in LOW.items()}
    with pytest.raises(FitError, match="another module of the same adapter"):
        tied_file(tmp_path, {**LOW, **twice})
