"""A base in half precision is proven as tightly as one in float32, and its rounding is measured."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from onnx import numpy_helper
from peft import LoraConfig, get_peft_model
from peft_folders import llama
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, merge, verify
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.planned_job import make_job
from lora_export.api.proof.model_proof import prove_model
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import VerificationError
from lora_export.models.choose import folder_model
from lora_export.models.subject import Subject
from lora_export.report.document import report_json
from lora_export.report.text import report_text

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
HALVES = [torch.bfloat16, torch.float16]
MODULE = "model.layers.1.self_attn.v_proj"
WORDS = "of its effect on the outputs"


def made(folder, dtype, std=0.05):
    """Folders of a base and of an adapter on every layer."""
    llama().to(dtype).save_pretrained(folder / "base")
    base = type(llama()).from_pretrained(folder / "base", dtype=dtype)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            size = std if "lora_B" in name else 0.2
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * size)
    adapted.save_pretrained(folder / "lora")
    return folder / "base", folder / "lora"


def update_of(lora, module):
    factors = load_file(lora / "adapter_model.safetensors")
    up, down = (factors[f"base_model.model.{module}.lora_{r}.weight"].double() for r in "BA")
    return 2 * (up @ down)


def proven(base, lora, out):
    job = make_job(base, [lora], network=Network(None), proof=None, settings={})
    source = folder_model(job.plan.base, ())
    return prove_model(job, Subject(source, job.plan, read_checkpoint(out))).proven()


@pytest.mark.parametrize("std", [0.05, 1e-3])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_a_percent_in_one_module_is_caught_and_named(dtype, std, tmp_path):
    base, lora = made(tmp_path, dtype, std)
    merge(base, [lora], tmp_path / "out")
    file, name = tmp_path / "out" / "model.safetensors", f"{MODULE}.weight"
    tensors, before = load_file(file), load_file(base / "model.safetensors")[name]
    assert proven(base, lora, tmp_path / "out").attribution is None
    tensors[name] = (before.double() + 1.005 * update_of(lora, MODULE)).to(dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    found = proven(base, lora, tmp_path / "out")
    assert {c.name for c in found.checks if not c.passed} == {
        "merged before rounding = unmerged (torch)",
        "merged before rounding = unmerged in float64",
    }
    assert (found.attribution.stage, found.attribution.module) == ("merge", MODULE)
    assert "inputs agree" in found.attribution.detail


@pytest.mark.parametrize("dtype", HALVES)
def test_its_tolerance_is_that_of_a_base_in_float32(dtype, tmp_path):
    limits = []
    for one in (torch.float32, dtype):
        base, lora = made(tmp_path / str(one), one)
        report = merge(base, [lora], tmp_path / str(one) / "out")
        [check] = [c for c in report.checks if c.name.endswith("= unmerged in float64")]
        limits.append(check.tolerance)
    assert limits[1] < 2 * limits[0]


@pytest.mark.parametrize("dtype", HALVES)
def test_rotary_frequencies_that_are_a_little_wrong_are_caught_in_onnx(dtype, tmp_path):
    base, lora = made(tmp_path, dtype)
    export_onnx(base, [lora], tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    [found] = [tensor for tensor in model.graph.initializer if "inv_freq" in tensor.name]
    values = numpy_helper.to_array(found) * 1.02
    found.CopyFrom(numpy_helper.from_array(values.astype("float32"), found.name))
    onnx.save(model, tmp_path / "out.onnx")
    (tmp_path / "out.onnx.lora_export.json").unlink()
    with pytest.raises(VerificationError) as caught:
        verify(tmp_path / "out.onnx", base=base, adapters=[lora])
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert {"ONNX Runtime = merged", "ONNX Runtime = unmerged, as stored"} <= failed


def share_by_hand(base, lora, out):
    """1 - |stored - unrounded|^2 / |unrounded - base|^2 of the logits, on other inputs."""
    ids = torch.randint(0, 60, (4, 20), generator=torch.Generator().manual_seed(1))
    kind = type(llama())

    def logits(folder, *, updates=False):
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        if updates:
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and name != "lm_head":
                    module.weight.data += update_of(lora, name).float()
        with torch.no_grad():
            return model(input_ids=ids).logits.double()

    right = logits(base, updates=True)
    lost = (logits(out) - right).square().sum()
    return float(1 - lost / (right - logits(base)).square().sum())


@pytest.mark.parametrize(("dtype", "std"), [(torch.bfloat16, 1e-3), (torch.bfloat16, 0.05)])
def test_what_rounding_leaves_of_the_effect_is_measured(dtype, std, tmp_path):
    base, lora = made(tmp_path, dtype, std)
    report = merge(base, [lora], tmp_path / "out")
    by_hand = share_by_hand(base, lora, tmp_path / "out")
    assert report.kept.share == pytest.approx(by_hand, abs=0.02)
    assert report.kept.output == "logits"
    assert report.kept.dtype == "bfloat16"
    shown = f"the adapter keeps {int(report.kept.share * 1000) / 10:.1f} % of its effect"
    text = report_text(report, verbose=False)
    assert f"\noutputs  stored in bfloat16 {shown}" in text
    assert "\nweights  stored in bfloat16, " in text
    assert text.startswith("PROVED: merged = base + adapter, rounded to bfloat16, ")
    entry = {"dtype": "bfloat16", "share": report.kept.share, "output": "logits"}
    assert report_json(report)["verification"]["kept_effect"] == entry
    manifest = json.loads((tmp_path / "out" / "lora_export.json").read_text())
    assert manifest["verification"]["kept_effect"] == entry
    assert not [warning for warning in report.warnings if WORDS in warning]


def test_little_that_is_left_is_a_note_and_no_failure(tmp_path):
    base, lora = made(tmp_path, torch.bfloat16, 1e-5)
    report = merge(base, [lora], tmp_path / "out", allow_noop=True)
    assert report.passed
    assert report.kept.share < 0.9
    [note] = [warning for warning in report.warnings if WORDS in warning]
    assert note.startswith(str(report.kept))
    again = verify(tmp_path / "out", base=base, adapters=[lora], allow_noop=True)
    assert again.kept == report.kept


def test_a_base_in_float32_has_nothing_to_measure(tmp_path):
    base, lora = made(tmp_path, torch.float32)
    report = merge(base, [lora], tmp_path / "out")
    assert report.kept is None
    assert report_json(report)["verification"]["kept_effect"] is None
    assert WORDS not in report_text(report, verbose=True)
    assert "merged = unmerged (torch)" in {check.name for check in report.checks}
