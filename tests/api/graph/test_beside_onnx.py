"""ONNX of an adapter with trained tensors beside it: the same reading as the merge's."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_folders import llama

from lora_export.api import export_onnx, verify
from lora_export.errors import VerificationError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_the_graph_holds_what_was_trained_beside(tmp_path):
    import onnxruntime

    model = llama(layers=1)
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    beside = {}
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "norm" in name:
            torch.nn.init.normal_(parameter.requires_grad_(), std=0.2)
        if "norm" in name:
            beside[name] = parameter.detach()
    adapted.save_pretrained(tmp_path / "lora")
    torch.save(beside, tmp_path / "lora" / "trainable_params.bin")

    graph = tmp_path / "out.onnx"
    report = export_onnx(tmp_path / "base", [tmp_path / "lora"], graph)
    assert all(check.passed for check in report.checks)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    ids = torch.arange(2, 14).reshape(2, 6)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    feeds = {one.name: given[one.name].numpy() for one in session.get_inputs()}
    with torch.no_grad():
        wanted = adapted.eval()(**given).logits
    assert (torch.from_numpy(session.run(None, feeds)[0]) - wanted).abs().max() < 1e-4

    again = {"base": tmp_path / "base", "adapters": [tmp_path / "lora"]}
    assert all(check.passed for check in verify(graph, **again).checks)
    (tmp_path / "lora" / "trainable_params.bin").unlink()
    with pytest.raises(VerificationError, match="inputs are those of the manifest"):
        verify(graph, **again)
