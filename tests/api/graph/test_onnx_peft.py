"""ONNX of PEFT adapters, also of those that change the model's shape: the result's own graph."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_folders import llama

from lora_export.api import export_onnx, verify

# What PEFT tells of ties and of transformers' new names is not about the export.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

OPTIONS = {
    "DoRA": {"use_dora": True},
    "a tied head that is not adapted alike": {"target_modules": ["embed_tokens", "q_proj"]},
    "repeated layers": {"layer_replication": [[0, 2], [1, 2]]},
    "a larger vocabulary": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
LARGER = {"a larger vocabulary": 70}


def trained(folder, options, vocabulary):
    layers = 2 if "layer_replication" in options else 1
    is_tied = not options.get("use_dora")
    model = llama(tied=is_tied, layers=layers)
    model.save_pretrained(folder / "base")
    if vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 6, **options}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


CASES = [
    case if case in ("DoRA", "a larger vocabulary") else pytest.param(case, marks=pytest.mark.slow)
    for case in OPTIONS
]


@pytest.mark.parametrize("case", CASES)
def test_exported_and_proven_again(case, tmp_path):
    base, adapter = trained(tmp_path, OPTIONS[case], LARGER.get(case))
    report = export_onnx(base, [adapter], tmp_path / "out.onnx")
    assert all(check.passed for check in report.checks)
    names = [check.name for check in report.checks]
    assert "ONNX Runtime = unmerged" in names
    again = verify(tmp_path / "out.onnx", base=base, adapters=[adapter])
    assert all(check.passed for check in again.checks)
