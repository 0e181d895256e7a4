"""Several adapters at once: the exact sum of what each alone would change, from the unmerged base.

PEFT's own combinations compute something else for rsLoRA and DoRA, so float64 is the oracle.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge

ALPHA, RANK = 6, 4
OTHER = {"plain": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def adapter(folder, base, seed, **config):
    """PEFT's own files for one Linear `m`, and what the adapter alone would add, in float64."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, generator=generator) * 0.2 for size in ((RANK, 24), (32, RANK)))
    scaling = ALPHA / (RANK**0.5 if config.get("use_rslora") else RANK)
    delta = scaling * (b.double() @ a.double())
    tensors = {"base_model.model.m.lora_A.weight": a, "base_model.model.m.lora_B.weight": b}
    if config.get("use_dora"):
        magnitude = torch.rand(32, generator=generator) + 0.5
        tensors["base_model.model.m.lora_magnitude_vector"] = magnitude
        turned = base.double() + delta
        norms = turned.norm(dim=1, keepdim=True)
        delta = magnitude.double()[:, None] / norms * turned - base.double()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    members = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **config}
    (folder / "adapter_config.json").write_text(json.dumps(members))
    return folder, delta


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("second", OTHER)
@pytest.mark.parametrize("first", OTHER)
def test_the_sum_is_exact(first, second, dtype, tmp_path):
    base = torch.randn(32, 24, generator=torch.Generator().manual_seed(9)).to(DTYPES[dtype])
    save_file({"m.weight": base}, tmp_path / "base.safetensors")
    one, left = adapter(tmp_path / "one", base, 1, **OTHER[first])
    two, right = adapter(tmp_path / "two", base, 2, **OTHER[second])
    out = tmp_path / "out.safetensors"
    report = merge(tmp_path / "base.safetensors", [one, two], out, weight=[0.75, -1.5])
    assert all(check.passed for check in report.checks)
    merged = load_file(out)["m.weight"]
    exact = base.double() + 0.75 * left - 1.5 * right
    nearest = exact.to(base.dtype)
    if base.dtype == torch.float32:
        torch.testing.assert_close(merged.double(), exact, rtol=1e-5, atol=1e-6)
    else:  # one rounding: but for ties that float32 cannot tell, the nearest
        assert (merged != nearest).float().mean() < 0.01


def test_an_adapter_of_loralib_beside_one_of_peft(tmp_path):
    base = torch.randn(32, 24, generator=torch.Generator().manual_seed(9))
    save_file({"m.weight": base}, tmp_path / "base.safetensors")
    theirs, delta = adapter(tmp_path / "peft", base, 1)
    a, b = torch.randn(2, 24), torch.randn(32, 2)
    save_file({"m.lora_A": a, "m.lora_B": b}, tmp_path / "lora.safetensors")
    out = tmp_path / "out.safetensors"
    adapters = [theirs, tmp_path / "lora.safetensors"]
    merge(tmp_path / "base.safetensors", adapters, out, alpha=5)  # of the one that does not say it
    exact = base.double() + delta + 5 / 2 * (b.double() @ a.double())
    torch.testing.assert_close(load_file(out)["m.weight"].double(), exact, rtol=1e-5, atol=1e-5)
