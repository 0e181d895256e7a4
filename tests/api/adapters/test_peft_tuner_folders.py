"""Whole folders of transformers with PEFT's tuners beside LoRA: PEFT's bits, proven as models."""

import peft
import pytest
import torch
from peft_tuners import DTYPES, quiet
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from lora_export.api import merge

BERT, GPT2 = BertForSequenceClassification, GPT2LMHeadModel
PRUNED = {"encoder.layer.0.attention.self.query.lora_E.default": [True, False, True],
          "encoder.layer.0.intermediate.dense.lora_E.default": [True, True, True]}  # fmt: skip


def build(kind):
    torch.manual_seed(0)
    if kind is BERT:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 40}
        return BERT(BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, vocab_size=99))
    return GPT2(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=99, n_positions=40))


CASES = {
    "adalora of BERT": (
        BERT,
        lambda: peft.AdaLoraConfig(
            task_type="SEQ_CLS",
            target_modules=["query", "intermediate.dense"],
            init_r=3,
            total_step=9,
            rank_pattern={f"bert.{name}": mask for name, mask in PRUNED.items()},
        ),
    ),
    "lokr of BERT": (
        BERT,
        lambda: peft.LoKrConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=3),
    ),
    "loha of BERT": (
        BERT,
        lambda: peft.LoHaConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=3),
    ),
    "ia3 of GPT-2": (
        GPT2,
        lambda: peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
        ),
    ),
    "vera of GPT-2": (
        GPT2,
        lambda: peft.VeraConfig(
            task_type="CAUSAL_LM", target_modules=["c_attn"], r=3, save_projection=False
        ),
    ),
}


@quiet()
def trained(name, dtype, folder):
    """Save base and adapter as their libraries do; what PEFT merges of them."""
    kind, config = CASES[name]
    build(kind).to(dtype).save_pretrained(folder / "base")
    model = peft.get_peft_model(kind.from_pretrained(folder / "base", dtype=dtype), config())
    for key, parameter in model.named_parameters():
        if any(mark in key for mark in ("lora_", "hada_", "lokr_", "vera_lambda", "ia3_l")):
            mean = 1.0 if "ia3" in key else 0.0
            parameter.data = torch.randn(parameter.shape) * 0.3 + mean
    model.save_pretrained(folder / "adapter")
    again = kind.from_pretrained(folder / "base", dtype=dtype)
    merged = peft.PeftModel.from_pretrained(again, folder / "adapter").merge_and_unload()
    return merged.state_dict()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_merged_as_by_peft_and_proven_as_a_model(name, dtype, tmp_path):
    expected = trained(name, DTYPES[dtype], tmp_path)
    report = merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert [key for key, tensor in merged.items() if not torch.equal(tensor, expected[key])] == []
    sides = "merged" if dtype == "fp32" else "merged before rounding"
    assert f"{sides} = unmerged (torch)" in {c.name for c in report.checks if c.passed}
    assert report.passed
