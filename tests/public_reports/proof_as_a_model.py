"""What people saw with adapters of networks that do not call every layer they adapt."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from lora_export.api import merge
from public_reports.report import Report


def _mamba(folder):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=1, pad_token_id=0
    )
    model = MambaForCausalLM(config)
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=4, target_modules=["in_proj", "dt_proj"])
    )
    ids = torch.randint(3, 40, (2, 9))
    optimiser = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), 1.0)
    for _ in range(2):
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    adapted.save_pretrained(folder / "adapter")
    return adapted


def _a_layer_that_is_never_called_keeps_its_weight(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT and transformers about each other
        expected = _mamba(folder).merge_and_unload().state_dict()
    report = merge(folder / "base", [folder / "adapter"], folder / "out")
    found = load_file(folder / "out/model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert any("mixer.dt_proj" in words and "all zero" in words for words in report.warnings)
    assert "merged = unmerged (torch)" in [check.name for check in report.checks]


REPORTS = [
    Report(
        "huggingface/transformers",
        30316,
        "the LoRA of Mamba's dt_proj is never called, so it is never trained",
        "the merge equals PEFT's, is proven as a model, and names the layer in a warning",
        _a_layer_that_is_never_called_keeps_its_weight,
    ),
]
