"""Layers of users that read their factors in a forward of their own, in the layer or its parent."""

from __future__ import annotations

import re

import loralib as lora
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, merge
from lora_export.errors import FitError, UsageError, VerificationError

HEAD = """\
import math
import loralib as lora
import torch
from torch import nn
from torch.nn import functional as F
INPUTS = "x=float32[batch,8]"
"""
UNASKED = """
class Layer(lora.Linear):
    def forward(self, x):
        low = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, self.weight, self.bias) + low * self.scaling
"""
ASKED = """
class Layer(lora.Linear):
    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y + x @ self.lora_A.T @ self.lora_B.T * self.scaling if self.r > 0 else y
"""
COATI = """
class Layer(lora.LoRALayer, nn.Module):
    \"\"\"As coati.models.lora.LoraLinear, which deletes its factors when it merges.\"\"\"
    def __init__(self, n_in, n_out, r, lora_alpha):
        nn.Module.__init__(self)
        lora.LoRALayer.__init__(self, r=r, lora_alpha=lora_alpha, lora_dropout=0.0,
                                merge_weights=True)
        self.fan_in_fan_out = False
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.lora_A = nn.Parameter(self.weight.new_zeros((r, n_in)))
        self.lora_B = nn.Parameter(self.weight.new_zeros((n_out, r)))
        self.scaling = self.lora_alpha / self.r
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.normal_(self.weight)
    def train(self, mode=True):
        self.training = mode
        if self.merge_weights and not mode and not self.merged:
            if self.r > 0:
                self.weight.data += self.lora_B @ self.lora_A * self.scaling
                delattr(self, "lora_A")
                delattr(self, "lora_B")
            self.merged = True
        return self
    def forward(self, x):
        y = F.linear(x, self.weight, bias=self.bias)
        if self.r > 0 and not self.merged:
            y = y + (self.lora_dropout(x) @ self.lora_A.t() @ self.lora_B.t()) * self.scaling
        return y
"""
ALONE = """
class Layer(nn.Linear):
    def __init__(self, n_in, n_out, r, lora_alpha):
        super().__init__(n_in, n_out)
        self.r, self.lora_alpha, self.fan_in_fan_out = r, lora_alpha, False
        self.lora_A = nn.Parameter(torch.randn(r, n_in))
        self.lora_B = nn.Parameter(torch.zeros(n_out, r))
    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T * (self.lora_alpha / 2)
"""
NETWORK = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = {layer}(8, 8, r=2, lora_alpha=6)
        self.out = nn.Linear(8, 3)
    def forward(self, x):
        return self.out({call}.tanh())
def build():
    return Net()
"""
PARENT = (
    "(F.linear(x, self.fc.weight, self.fc.bias) "
    "+ x @ self.fc.lora_A.T @ self.fc.lora_B.T * self.fc.scaling)"
)
WEIGHT_ALONE = "F.linear(x, self.fc.weight, self.fc.bias)"
SCALED = re.compile(r"\* (self\.(fc\.)?scaling|\(self\.lora_alpha / 2\))")
CODES = {
    "a subclass that does not ask": UNASKED + NETWORK.format(layer="Layer", call="self.fc(x)"),
    "a subclass that asks": ASKED + NETWORK.format(layer="Layer", call="self.fc(x)"),
    "no class of loralib": ALONE + NETWORK.format(layer="Layer", call="self.fc(x)"),
    "coati": COATI + NETWORK.format(layer="Layer", call="self.fc(x)"),
    "read by the parent": NETWORK.format(layer="lora.Linear", call=PARENT),
}


def case(folder, code):
    (folder / "net.py").write_text(HEAD + code)
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict(
        {"fc": lora.Linear(8, 8, r=2, lora_alpha=6), "out": torch.nn.Linear(8, 3)}
    )
    torch.nn.init.normal_(layers["fc"].lora_B)
    state = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    save_file({k: v for k, v in state.items() if "lora_" not in k}, folder / "base.safetensors")
    save_file(lora.lora_state_dict(layers), folder / "lora.safetensors")
    expected = layers.eval()["fc"].weight.detach().clone()
    return folder / "base.safetensors", [folder / "lora.safetensors"], expected


@pytest.mark.parametrize("name", CODES)
def test_the_users_own_forward_is_a_witness(name, tmp_path):
    base, adapters, expected = case(tmp_path, CODES[name])
    out = tmp_path / "out.safetensors"
    report = merge(base, adapters, out, model=f"{tmp_path}/net.py:build")
    assert torch.equal(load_file(out)["fc.weight"], expected)
    checks = [check.name for check in report.checks]
    assert {"merged = your own modules", "merged = unmerged in float64"} <= set(checks)
    told = [
        words
        for words in report.warnings
        if "your own modules are the unmerged model instead" in words
    ]
    assert len(told) == (name == "read by the parent")


@pytest.mark.parametrize("name", CODES)
def test_a_forward_of_another_scaling_is_caught(name, tmp_path):
    """The factory's own code is held against the merge, not only our branches."""
    code, count = SCALED.subn(r"\g<0> * 1.01", CODES[name])
    assert count
    base, adapters, _ = case(tmp_path, code)
    with pytest.raises(VerificationError) as caught:
        merge(base, adapters, tmp_path / "out.safetensors", model=f"{tmp_path}/net.py:build")
    assert "merged = your own modules" in {c.name for c in caught.value.checks if not c.passed}


def test_a_parent_that_reads_the_weight_alone_has_no_update(tmp_path):
    code = NETWORK.format(layer="lora.Linear", call=WEIGHT_ALONE)
    base, adapters, _ = case(tmp_path, code)
    with pytest.raises(VerificationError, match="merged = your own modules"):
        merge(base, adapters, tmp_path / "out.safetensors", model=f"{tmp_path}/net.py:build")


def test_without_modules_of_its_own_it_is_refused(tmp_path):
    code = NETWORK.replace("{layer}(8, 8, r=2, lora_alpha=6)", "nn.Linear(8, 8)")
    base, adapters, _ = case(tmp_path, code.format(call=WEIGHT_ALONE))
    with pytest.raises(FitError, match="never calls this module") as caught:
        merge(base, adapters, tmp_path / "o.safetensors", model=f"{tmp_path}/net.py:build", alpha=6)
    assert "low-rank modules of its training" in str(caught.value)


@pytest.mark.parametrize("name", ["a subclass that asks", "coati"])
def test_what_can_be_plain_is_exported(name, tmp_path):
    base, adapters, _ = case(tmp_path, CODES[name])
    report = export_onnx(base, adapters, tmp_path / "o.onnx", model=f"{tmp_path}/net.py:build")
    assert report.passed


@pytest.mark.parametrize(
    "name", ["a subclass that does not ask", "read by the parent", "no class of loralib"]
)
def test_what_cannot_be_plain_is_told(name, tmp_path):
    base, adapters, _ = case(tmp_path, CODES[name])
    with pytest.raises(UsageError, match=r"lora_A.*\n.*if layer\.r > 0"):
        export_onnx(base, adapters, tmp_path / "o.onnx", model=f"{tmp_path}/net.py:build")
