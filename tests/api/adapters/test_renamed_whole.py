"""Whole tensors that the adapter, or the base, calls by another age's names; the factors fit."""

import pytest
import torch
import transformers as tr
from peft import LoraConfig
from peft_folders import bert, reloaded, save
from safetensors.torch import load_file, save_file

from lora_export.api import merge

pytestmark = pytest.mark.filterwarnings("ignore")

# As checkpoints of the TensorFlow line and of torch before 2.0 say.
OLD = {
    "LayerNorm.weight": "LayerNorm.gamma",
    "LayerNorm.bias": "LayerNorm.beta",
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def speech():
    torch.manual_seed(0)
    config = tr.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        conv_dim=(16, 16), conv_stride=(4, 4), conv_kernel=(8, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=20,
    )  # fmt: skip
    return tr.Wav2Vec2ForCTC(config)


# name -> (model, configuration, input)
CASES = {
    "biases of norms": (bert, LoraConfig(r=4, target_modules=["query"], bias="all"), "ids"),
    "biases of an encoder": (
        lambda: bert("BertModel"), LoraConfig(r=4, target_modules=["query"], bias="all"), "ids"
    ),
    "norms of modules_to_save": (
        bert, LoraConfig(r=4, target_modules=["query"], modules_to_save=["LayerNorm"]), "ids"
    ),
    "weight_norm": (
        speech,
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["pos_conv_embed"]),
        "sound",
    ),
}  # fmt: skip


def renamed(path):
    state = load_file(path)
    for new, old in OLD.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    save_file(state, path, {"format": "pt"})


def output(model, kind):
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 60, (2, 12), generator=draw)
    value = ids if kind == "ids" else torch.randn(2, 400, generator=draw)
    with torch.no_grad():
        return model.eval()(value)[0]


@pytest.mark.parametrize("with_transformers", [True, False])
@pytest.mark.parametrize("which", ["base", "lora"])
@pytest.mark.parametrize("case", CASES)
def test_they_replace_what_the_base_calls_otherwise(
    case, which, with_transformers, tmp_path, monkeypatch
):
    if not with_transformers:
        for place in ("models.hf.huggingface", "models.choose", "planning.names.misfit"):
            monkeypatch.setattr(f"lora_export.{place}.transformers_installed", lambda: False)
    model, config, kind = CASES[case]
    model = model()
    unmerged = save(tmp_path, model, config)
    expected = output(unmerged(), kind)
    weights = {"base": "model.safetensors", "lora": "adapter_model.safetensors"}[which]
    renamed(tmp_path / which / weights)
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == stored.keys()
    assert (output(reloaded(tmp_path / "out", type(model)), kind) - expected).abs().max() < 1e-5
    assert "the base calls it" in " ".join(report.plan.choices)
    proven = {check.name for check in report.checks}
    assert ("merged = unmerged (torch)" in proven) is with_transformers
