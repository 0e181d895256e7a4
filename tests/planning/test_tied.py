"""Tied tensors of Transformers models: what is separated, and what config.json says of it."""

import json

import pytest
import torch
from peft import LoraConfig
from peft_folders import save
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from lora_export.api import merge

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILY = ["T5", "LongT5", "MT5", "SwitchTransformers", "UMT5"]
SIZES = {
    "vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
IDS = {"input_ids": torch.arange(3, 12)[None], "decoder_input_ids": torch.arange(5, 9)[None]}


def logits(model):
    with torch.no_grad():
        return model.eval()(**IDS).logits


def seq2seq(family, **config):
    import transformers

    torch.manual_seed(0)
    configuration = getattr(transformers, f"{family}Config")(**SIZES, **config)
    return getattr(transformers, f"{family}ForConditionalGeneration")(configuration)


def merged(folder):
    merge(folder / "base", [folder / "lora"], folder / "out")
    return AutoModelForSeq2SeqLM.from_pretrained(folder / "out", dtype=torch.float32)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("target", "whole"), [("lm_head", False), ("shared", True)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("family", FAMILY)
def test_outputs_are_scaled_where_the_base_scales_them(family, scaled, whole, target, tmp_path):
    modules = ["q"] if whole else ["q", target]
    config = LoraConfig(r=2, target_modules=modules, modules_to_save=[target] if whole else None)
    model = seq2seq(family, tie_word_embeddings=scaled)
    unmerged = save(tmp_path, model, config, auto=AutoModelForSeq2SeqLM)
    torch.testing.assert_close(logits(merged(tmp_path)), logits(unmerged()), atol=1e-4, rtol=1e-4)
    assert config_of(tmp_path / "out") == config_of(tmp_path / "base")


@pytest.mark.parametrize("target", ["lm_head", "shared"])
@pytest.mark.parametrize("says", [True, False])
def test_a_head_stored_with_other_values_is_tied_to_nothing(says, target, tmp_path):
    config = LoraConfig(r=2, target_modules=["q", target])
    model = seq2seq("T5")
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    unmerged = save(tmp_path, model, config, auto=AutoModelForSeq2SeqLM)
    said = config_of(tmp_path / "base")
    del said["scale_decoder_outputs"]
    said["tie_word_embeddings"] = says
    (tmp_path / "base" / "config.json").write_text(json.dumps(said))
    assert "lm_head.weight" in load_file(tmp_path / "base" / "model.safetensors")
    torch.testing.assert_close(logits(merged(tmp_path)), logits(unmerged()), atol=1e-4, rtol=1e-4)
    assert config_of(tmp_path / "out") == said
