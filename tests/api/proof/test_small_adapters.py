"""Right adapters that are small: resolved on every base, or told and proven by weights.

On a base in half precision the rounding of the weights is larger than such an adapter's effect. The
outputs are compared before that rounding.
"""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft_folders import bert, llama
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, merge, verify
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.planned_job import make_job
from lora_export.api.proof.model_proof import prove_model
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import VerificationError
from lora_export.models.subject import Subject

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TARGETS = {llama: ["q_proj", "v_proj", "down_proj"], bert: ["query", "value"]}
EFFECT = "the adapter has an effect"


def case(folder, build, dtype, std):
    """Folders of a base and an adapter, and what PEFT merges of them."""
    model = build().to(dtype)
    model.save_pretrained(folder / "base")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[build])
    adapted = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            size = std if "lora_B" in name else 0.2
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * size)
    adapted.save_pretrained(folder / "lora")
    base = build().from_pretrained(folder / "base", dtype=dtype)
    merged = PeftModel.from_pretrained(base, folder / "lora").merge_and_unload()
    return folder / "base", [folder / "lora"], merged.state_dict()


def told(report):
    return [words for words in report.warnings if "does not resolve this adapter" in words]


@pytest.mark.parametrize(
    ("build", "dtype", "std", "resolved"),
    [
        (llama, torch.bfloat16, 2e-5, True),
        (llama, torch.bfloat16, 1e-4, True),
        (llama, torch.bfloat16, 2e-4, True),
        (llama, torch.bfloat16, 0.2, True),
        (llama, torch.float16, 1e-6, True),
        (llama, torch.float16, 1e-4, True),
        (bert, torch.bfloat16, 2e-4, True),
        (bert, torch.float32, 1e-7, False),
        (bert, torch.float32, 1e-2, True),
    ],
)
def test_no_right_merge_is_refused(build, dtype, std, resolved, tmp_path):
    base, adapters, expected = case(tmp_path, build, dtype, std)
    report = merge(base, adapters, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in found)
    checks = {check.name: check for check in report.checks}
    assert (EFFECT in checks) == resolved
    assert len(told(report)) == (not resolved)
    details = [c.detail for c in report.checks if c.level == "model" and "unmerged" in c.name]
    assert details
    assert all(detail.startswith("not resolved: ") != resolved for detail in details)
    record = json.loads((tmp_path / "out/lora_export.json").read_text())["verification"]
    assert record["passed"]
    assert any("not resolved" in one["detail"] for one in record["checks"]) != resolved


@pytest.mark.parametrize(
    ("wrong", "failed"),
    [("skipped", "every target changed"), ("doubled", "merged elements"), (1.1, "scaling")],
)
def test_the_weights_still_prove_it(wrong, failed, tmp_path):
    base, adapters, _ = case(tmp_path, llama, torch.bfloat16, 2e-4)
    merge(base, adapters, tmp_path / "out", verify=False)
    (tmp_path / "out/lora_export.json").unlink()
    file, name = tmp_path / "out/model.safetensors", "model.layers.1.self_attn.v_proj.weight"
    tensors, before = load_file(file), load_file(base / "model.safetensors")[name]
    factors = load_file(adapters[0] / "adapter_model.safetensors")
    up, down = (
        factors[f"base_model.model.model.layers.1.self_attn.v_proj.lora_{role}.weight"].float()
        for role in "BA"
    )
    share = {"skipped": 0.0, "doubled": 2.0}.get(wrong, wrong)
    tensors[name] = (before.float() + 2 * share * (up @ down)).bfloat16()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=failed if failed != "scaling" else "") as caught:
        verify(tmp_path / "out", base=base, adapters=adapters)
    assert {c.name for c in caught.value.checks if not c.passed} & {failed, "merged elements"}


def test_what_the_outputs_show_is_still_caught_by_them(tmp_path):
    """A small adapter hides itself, and no fault that is larger than the noise."""
    base, adapters, _ = case(tmp_path, llama, torch.bfloat16, 2e-4)
    merge(base, adapters, tmp_path / "out", verify=False)
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name] * 1.5}, file, metadata={"format": "pt"})
    job = make_job(base, adapters, network=Network(None), proof=None, settings={})
    from lora_export.models.choose import folder_model

    source = folder_model(job.plan.base, ())
    proven = prove_model(job, Subject(source, job.plan, read_checkpoint(tmp_path / "out"))).proven()
    assert not all(check.passed for check in proven.checks)


def test_a_tolerance_of_ones_own_that_hides_it_is_refused(tmp_path):
    base, adapters, _ = case(tmp_path, llama, torch.bfloat16, 2e-4)
    with pytest.raises(VerificationError, match=r"vacuous") as caught:
        merge(base, adapters, tmp_path / "out", atol=0.5)
    assert "--atol below" in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "std", "side"),
    [(torch.bfloat16, 2e-4, "unmerged, as stored"), (torch.float32, 1e-8, "unmerged")],
)
def test_it_is_exported(dtype, std, side, tmp_path):
    base, adapters, _ = case(tmp_path, llama, dtype, std)
    report = export_onnx(base, adapters, tmp_path / "out.onnx")
    assert bool(told(report)) == (dtype == torch.float32)
    names = {"every weight bit-equal", "ONNX Runtime = merged", f"ONNX Runtime = {side}"}
    assert names <= {c.name for c in report.checks}
