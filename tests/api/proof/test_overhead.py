"""What merging saves is counted: held against whole exports with PEFT's own layers in the graph."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_export.api import export_onnx
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.onnx_export.capture.trace import capture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 48, "max_position_embeddings": 40}  # fmt: skip


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**SIZES))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=False)
    return LlamaForCausalLM(config)


CASES = {
    "bert": (bert, ["query", "output.dense"], {}),
    "llama": (llama, ["q_proj", "k_proj", "down_proj", "embed_tokens"], {"use_rslora": True}),
}


@pytest.mark.parametrize("case", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_nodes_and_parameters_are_those_that_a_whole_export_has_beside(case, tmp_path):
    build, targets, options = CASES[case]
    torch.manual_seed(0)
    model = build().eval()
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=targets, r=4, lora_alpha=6, **options)
    adapted = get_peft_model(copy.deepcopy(model), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    report = export_onnx(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out.onnx")

    names = ["input_ids", "attention_mask", *(["token_type_ids"] if case == "bert" else [])]
    inputs = parse_inputs([f"{name}=int64[batch,sequence]<2" for name in names])
    live = adapted.eval().base_model.model  # with PEFT's layers in it, under its own forward
    whole = len(capture(live, inputs).graph.node)
    factors = [p.numel() for name, p in adapted.named_parameters() if "lora_" in name]
    graph = report.facts["graph"]
    assert graph["saved"] == {"nodes": whole - graph["nodes"], "parameters": sum(factors)}
    assert graph["saved"]["nodes"] >= 4 * len(factors) / 2
    check_stages(report.facts["seconds"])
    manifest = json.loads((tmp_path / "out.onnx.lora_export.json").read_text())
    assert "seconds" not in manifest


def check_stages(seconds):
    """Every stage is timed, and hardly anything happens between them."""
    *stages, total = seconds
    assert stages == [
        "plan", "merge", "proof by weights", "capture", "fill and save", "proof as a model",
        "static audit", "runtime", "overhead",
    ]  # fmt: skip
    assert total == "total"
    spent = sum(seconds[stage] for stage in stages)
    assert 0.5 * seconds[total] < spent < seconds[total] + 0.01
