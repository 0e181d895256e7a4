"""Networks that fix float32 inside do not run in float64, and are proven and exported."""

from __future__ import annotations

import json

import loralib as lora
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, merge
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.planned_job import make_job
from lora_export.api.proof.model_proof import prove_model
from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.subject import Subject

CODE = """\
import loralib as lora
import torch
from torch import nn
INPUTS = "x=float32[batch,12]"
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = lora.Linear(12, 20, r=4, lora_alpha=8)
        self.out = nn.Linear(20, 3)
        self.register_buffer("table", torch.linspace(-1, 1, 400).view(20, 20), persistent=False)
        self.kept = None
    def forward(self, x):
        {forward}
def build():
    return Net()
"""
FIXED = {
    "float()": "return self.out(self.fc(x.float()).relu())",
    "to(float32)": "return self.out(self.fc(x).to(torch.float32).tanh())",
    "type_as": "return self.out(self.fc(x).type(torch.FloatTensor).tanh())",
    "arange": """\
        angles = torch.arange(20, dtype=torch.float32)[:, None] * torch.ones(1, 20) / 400
        return self.out((self.fc(x) @ angles.cos()).relu())""".lstrip(),
    "mask of attention": """\
        h = self.fc(x)
        mask = torch.zeros(len(h), len(h), dtype=torch.float32)
        return self.out(torch.softmax((h @ h.T).float() + mask, -1, dtype=torch.float32) @ h)
        """.strip(),
    "buffer": "return self.out(self.fc(x).float() @ self.table.float())",
    "kept from the first call": """\
        if self.kept is None:
            self.kept = torch.linspace(0, 1, 20, dtype=x.dtype).diag()
        return self.out(self.fc(x) @ self.kept)""".lstrip(),
    "another dtype for a part": """\
        with torch.autocast("cpu", enabled=False):
            h = self.fc(x).double().sin().to(torch.float32)
        return self.out(h)""".lstrip(),
}
RUNS = {
    "all promoted": "return self.out(self.fc(x)) * torch.arange(3, dtype=torch.float32)",
    "autocast": """\
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.fc(x)
        return self.out(h.to(self.out.weight.dtype))""".lstrip(),
}
TOLD = "does not run in float64"


def case(folder, forward, std=1.0):
    (folder / "net.py").write_text(CODE.format(forward=forward))
    torch.manual_seed(0)
    layers = {"fc": lora.Linear(12, 20, r=4, lora_alpha=8), "out": torch.nn.Linear(20, 3)}
    model = torch.nn.ModuleDict(layers)
    torch.nn.init.normal_(model["fc"].lora_B, std=std)
    state = model.state_dict()
    save_file({k: v for k, v in state.items() if "lora_" not in k}, folder / "base.safetensors")
    save_file(lora.lora_state_dict(model), folder / "lora.safetensors")
    return folder / "base.safetensors", [folder / "lora.safetensors"], f"{folder}/net.py:build"


def names(report):
    return [check.name for check in report.checks]


@pytest.mark.parametrize("name", FIXED)
def test_a_network_that_fixes_float32_is_proven(name, tmp_path):
    base, adapters, model = case(tmp_path, FIXED[name])
    report = merge(base, adapters, tmp_path / "out.safetensors", model=model)
    assert "merged = unmerged, each operator in float64" in names(report)
    assert "merged = your own modules" in names(report)
    assert "the adapter has an effect" in names(report)
    [told] = [words for words in report.warnings if TOLD in words]
    assert "noise was measured in float32" in told
    record = json.loads((tmp_path / "out.safetensors.lora_export.json").read_text())
    assert "each operator in float64" in json.dumps(record)


@pytest.mark.parametrize("name", RUNS)
def test_one_that_runs_in_float64_is_held_against_that(name, tmp_path):
    base, adapters, model = case(tmp_path, RUNS[name])
    report = merge(base, adapters, tmp_path / "out.safetensors", model=model)
    assert "merged = unmerged in float64" in names(report)
    assert not any(TOLD in words for words in report.warnings)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("wrong", [1.003, "skipped", "one element"])
def test_a_wrong_merge_is_caught_and_placed(wrong, name, tmp_path):
    base, adapters, model = case(tmp_path, FIXED[name])
    out = tmp_path / "out.safetensors"
    merge(base, adapters, out, model=model, verify=False)
    tensors, before = load_file(out), load_file(base)["fc.weight"]
    if wrong == "one element":
        tensors["fc.weight"][3, 4] += 0.03
    else:
        share = 0 if wrong == "skipped" else wrong
        tensors["fc.weight"] = before + share * (tensors["fc.weight"] - before)
    save_file(tensors, out)
    job = make_job(base, adapters, network=Network(model), proof=None, settings={})
    proven = prove_model(job, Subject(job.source, job.plan, read_checkpoint(out))).proven()
    assert {c.name for c in proven.checks if not c.passed} >= {"merged = unmerged (torch)"}
    assert (proven.attribution.stage, proven.attribution.module) == ("merge", "fc")


def test_it_is_exported(tmp_path):
    base, adapters, model = case(tmp_path, FIXED["float()"])
    report = export_onnx(base, adapters, tmp_path / "out.onnx", model=model)
    assert {"ONNX Runtime = merged", "ONNX Runtime = unmerged"} <= set(names(report))
    assert any(TOLD in words for words in report.warnings)
