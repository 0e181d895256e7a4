"""Whole folders with adapters that PEFT saved: its own bits, and the model proven unmerged."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft_layers import DTYPES, disturb
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from lora_export.api import merge

pytestmark = pytest.mark.filterwarnings("ignore")  # of old names, in transformers and PEFT


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        **sizes, intermediate_size=48, vocab_size=60, max_position_embeddings=20, num_labels=3
    )
    return BertForSequenceClassification(config)


def gpt2():
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 20}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False))


def vit():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=48, image_size=16, patch_size=4, num_labels=3)
    return ViTForImageClassification(config)


def gemma():
    config = Gemma3TextConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, vocab_size=60, head_dim=16, max_position_embeddings=20,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


CASES = {
    "bert dora": (
        bert,
        {"target_modules": ["query", "dense", "word_embeddings"], "use_dora": True},
    ),
    "bert bias": (bert, {"target_modules": ["key", "output.dense"], "lora_bias": True}),
    "bert by pattern": (
        bert,
        {
            "target_modules": ["query", "value", "dense"],
            "use_rslora": True,
            # PEFT saves patterns sorted, so overlapping ones are read back in another order.
            "rank_pattern": {r"layer\.0\.attention.*": 3, "value": 2},
            "alpha_pattern": {r"attention\.self\.(query|value)": 9},
        },
    ),
    "gpt2 dora": (gpt2, {"target_modules": ["c_attn", "c_proj", "wte"], "use_dora": True}),
    "vit": (vit, {"target_modules": ["projection", "classifier"], "lora_bias": True}),
    "vit dora": (vit, {"target_modules": ["projection", "classifier"], "use_dora": True}),
    "gemma": (gemma, {"target_modules": ["embed_tokens", "q_proj"]}),
    "gemma dora": (gemma, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_a_folder(name, dtype, tmp_path):
    build, settings = CASES[name]
    torch.manual_seed(0)
    base = build().to(DTYPES[dtype])
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, **settings))
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")

    safe = dtype == "F16"
    recipe = "peft-safe" if safe else "auto"
    report = merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", recipe=recipe)

    fresh = type(base).from_pretrained(tmp_path / "base", dtype=DTYPES[dtype])
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert get_peft_model_state_dict(loaded).keys() == stored.keys()  # PEFT took every key
    wanted = loaded.merge_and_unload(safe_merge=safe).state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    names = type(base).from_pretrained(tmp_path / "out", dtype=DTYPES[dtype]).state_dict()
    assert [key for key in names if not torch.equal(names[key], wanted[key])] == []
    assert {tensor.dtype for tensor in merged.values()} == {DTYPES[dtype]}
    sides = "merged" if dtype in ("fp32", "F32") else "merged before rounding"
    assert f"{sides} = unmerged (torch)" in {check.name for check in report.checks}
