"""Full tensors of a PEFT adapter in the plan."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge


@pytest.mark.parametrize("weight", [1, 0.5])
@pytest.mark.parametrize("bias", [0.0, 1.0])  # the base's own is not replaced
def test_a_weight_does_not_scale_full_tensors_and_that_is_told(weight, bias, tmp_path):
    save_file({"q.weight": torch.ones(8, 8), "q.bias": torch.zeros(8)}, tmp_path / "b.safetensors")
    factors = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.ones(8, 2)}
    (tmp_path / "lora").mkdir()
    full = {"q.bias": torch.full((8,), bias)}
    save_file({**factors, **full}, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "all"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    report = merge(tmp_path / "b.safetensors", [tmp_path / "lora"], dry_run=True, weight=[weight])
    told = [text for text in report.plan.warnings if "--weight 0.5 scales the update alone" in text]
    assert bool(told) is (weight != 1 and bias != 0)
