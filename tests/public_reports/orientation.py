"""What people saw with weights that are stored (in, out)."""

from __future__ import annotations

import loralib
import torch
from safetensors.torch import load_file

from lora_export.api import merge
from public_reports.report import Report

_PLACE = "transformer.h.0.attn.c_proj"


def _a_square_conv1d_is_read_as_the_folder_says(folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 40}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    model.save_pretrained(folder / "base")
    layer = loralib.Linear(32, 32, r=4, lora_alpha=8, fan_in_fan_out=True)
    layer.weight.data.copy_(model.get_submodule(_PLACE).weight)
    torch.nn.init.normal_(layer.lora_B)
    factors = {f"{_PLACE}.lora_{role}": getattr(layer, f"lora_{role}") for role in "AB"}
    torch.save(factors, folder / "lora.pt")
    merge(folder / "base", [folder / "lora.pt"], folder / "out", alpha=8)
    layer.train()
    layer.eval()
    found = load_file(folder / "out" / "model.safetensors")
    assert torch.equal(found[f"{_PLACE}.weight"], layer.weight)


REPORTS = [
    Report(
        "lablup/mlxcel",
        925,
        "an update was added to a Conv1D weight of GPT-2 as if that were stored (out, in)",
        "the folder's model type decides how a square weight is stored; no option is needed",
        _a_square_conv1d_is_read_as_the_folder_says,
    ),
]
