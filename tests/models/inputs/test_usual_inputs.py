"""What a Hugging Face folder takes is known for every common kind of network, and it runs on it."""

import pytest
import torch
import transformers as tr
from peft import LoraConfig, get_peft_model
from peft_matrix.architectures import ARCHITECTURES

from lora_export.api import export_onnx, merge

PAIR = {
    "vocab_size": 80, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}  # fmt: skip

# Those of the matrix: their graphs are captured once for all tests.
MODELS = {
    "T5": (tr.T5ForConditionalGeneration, ARCHITECTURES["t5"].config, ["q", "v"]),
    "Bart": (
        tr.BartForConditionalGeneration,
        lambda: tr.BartConfig(**PAIR, max_position_embeddings=64),
        ["q_proj", "v_proj"],
    ),
    "Whisper": (
        tr.WhisperForConditionalGeneration, ARCHITECTURES["whisper"].config, ["q_proj", "v_proj"],
    ),
    "CLIP": (tr.CLIPModel, ARCHITECTURES["clip"].config, ["q_proj"]),
}  # fmt: skip


def saved(name, folder):
    kind, config, targets = MODELS[name]
    torch.manual_seed(0)
    model = kind(config())
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, r=4))
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_merge_is_proven_as_a_model(name, tmp_path):
    base, adapter = saved(name, tmp_path)
    report = merge(base, [adapter], tmp_path / "out")
    assert "merged = unmerged (torch)" in {check.name for check in report.checks}
    assert report.warnings == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_and_its_onnx_runs(name, tmp_path):
    base, adapter = saved(name, tmp_path)
    report = export_onnx(base, [adapter], tmp_path / "out.onnx")
    assert "ONNX Runtime = unmerged" in {check.name for check in report.checks}
