"""Rows that a mask hides throughout are compared: with numbers, or NaN at the same places."""

import numpy as np
import pytest
import torch
import transformers as tr
from peft import LoraConfig, get_peft_model

from lora_export.api import export_onnx, merge
from lora_export.errors import VerificationError

ATTENTION = """
import loralib as lora
import torch
from torch import nn
INPUTS = ("x=float32[batch,sequence,6]", "mask=int64[batch,sequence]")
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = lora.Linear(6, 6, r=2)
        self.key = nn.Linear(6, 6)
    def forward(self, x, mask):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        seen = mask.bool()
        hidden = ~(seen[:, None, :] & seen[:, :, None])
        return torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ x
def build():
    return Net()
"""


@pytest.fixture
def padded(tmp_path):
    """A folder with the inputs of texts that are padded on the left."""
    random = np.random.default_rng(0)
    mask = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])
    np.savez(
        tmp_path / "ids.npz", input_ids=random.integers(3, 40, mask.shape), attention_mask=mask
    )
    x = random.standard_normal((*mask.shape, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, mask=mask)
    return tmp_path


@pytest.fixture
def attention(padded):
    """A network whose softmax has 0 / 0 in the rows of padding: factory, base, adapter."""
    (padded / "net.py").write_text(ATTENTION)
    torch.manual_seed(0)
    parts = {"query.weight": (6, 6), "query.bias": (6,), "key.weight": (6, 6), "key.bias": (6,)}
    torch.save({name: torch.randn(shape) for name, shape in parts.items()}, padded / "base.pt")
    factors = {"query.lora_A": torch.randn(2, 6), "query.lora_B": torch.randn(6, 2)}
    torch.save(factors, padded / "lora.pt")
    return padded / "base.pt", [padded / "lora.pt"], f"{padded / 'net.py'}:build"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_gemma_in_eager_attention_is_proven_on_texts_padded_on_the_left(padded):
    torch.manual_seed(0)
    config = tr.Gemma2Config(
        vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=1, head_dim=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        attn_implementation="eager",
    )  # fmt: skip
    model = tr.Gemma2ForCausalLM(config)
    model.save_pretrained(padded / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(padded / "lora")
    report = merge(padded / "base", [padded / "lora"], padded / "out", inputs=padded / "ids.npz")
    assert "merged = unmerged, each operator in float64" in {check.name for check in report.checks}
    assert any("gives NaN in float64 alone" in warning for warning in report.warnings)
    assert "nan" not in report.facts


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nan_at_the_same_places_is_equal_and_counted(padded, attention):
    base, adapters, model = attention
    report = export_onnx(base, adapters, padded / "out.onnx", model=model, inputs=padded / "x.npz")
    assert {"ONNX Runtime = unmerged", "merged = unmerged in float64"} <= {
        check.name for check in report.checks
    }
    # Four rows of padding among the batch's three texts; the first text alone has none.
    assert report.facts["nan"] == [{"output": "output", "elements": 24, "of": 7 * 6 * 4}]
    assert any("24 of 168 elements of output are NaN" in line for line in report.warnings)


def test_an_output_of_nothing_but_nan_fails(padded, attention):
    base, adapters, model = attention
    np.savez(padded / "x.npz", x=np.ones((2, 3, 6), np.float32), mask=np.zeros((2, 3), np.int64))
    with pytest.raises(VerificationError, match="nothing but NaN"):
        merge(base, adapters, padded / "out.safetensors", model=model, inputs=padded / "x.npz")
