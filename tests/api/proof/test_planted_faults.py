"""Faults planted into a result: each must be caught, by `verify` and by `onnx --verify`."""

from pathlib import Path

import loralib as lora
import pytest
import small_gpt
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import export_onnx, merge, verify
from lora_export.errors import VerificationError

ATTENTION, PROJECTION = "blocks.0.c_attn.weight", "blocks.1.c_proj.weight"
MODEL = f"{Path(small_gpt.__file__)}:build"


def scaled(name, base, merged, factor):
    return {name: base[name] + (merged[name] - base[name]) * factor}


def rolled(base, merged):
    """The query's update in the key's place: blocks lie along the columns (in, out)."""
    delta = (merged[ATTENTION] - base[ATTENTION]).roll(small_gpt.WIDTH, dims=1)
    return {ATTENTION: base[ATTENTION] + delta}


FAULTS = {
    "scaling 1 % too large": lambda b, m: scaled(PROJECTION, b, m, 1.01),
    "scaling 0.5 % too small": lambda b, m: scaled(ATTENTION, b, m, 0.995),
    "update transposed": lambda b, m: {
        PROJECTION: b[PROJECTION] + (m[PROJECTION] - b[PROJECTION]).T
    },
    "module skipped": lambda b, _: {PROJECTION: b[PROJECTION]},
    "QKV block shifted": rolled,
    "update applied twice": lambda b, m: scaled(ATTENTION, b, m, 2.0),
    "one row zeroed": lambda _, m: {
        PROJECTION: m[PROJECTION].index_fill(0, torch.tensor([3]), 0.0)
    },
    "one element off": lambda _, m: {
        PROJECTION: m[PROJECTION] + torch.eye(small_gpt.WIDTH).mul(1e-5).tril().triu()
    },
    "through half precision": lambda _, m: {ATTENTION: m[ATTENTION].half().float()},
    "untouched tensor changed": lambda b, _: {"wte.weight": b["wte.weight"].flip(0)},
}


NAMED = {
    "scaling 1 % too large": "wrong-factor",
    "scaling 0.5 % too small": "wrong-factor",
    "update transposed": "transposed",
    "module skipped": "not-merged",
    "QKV block shifted": "blocks-swapped",
    "update applied twice": "merged-twice",
    "one row zeroed": "single-rows",
    "one element off": "single-elements",
    "through half precision": "rounded-narrower",
    "untouched tensor changed": "tensor-changed",
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    model = small_gpt.trained()
    state = {k: v.contiguous() for k, v in model.state_dict().items() if "lora_" not in k}
    save_file(state, folder / "base.safetensors")
    torch.save(lora.lora_state_dict(model), folder / "lora.pt")
    merge(
        folder / "base.safetensors", [folder / "lora.pt"], folder / "good.safetensors", model=MODEL
    )
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_catches_a_fault_in_the_merged_file(fault, case, tmp_path):
    base, merged = load_file(case / "base.safetensors"), load_file(case / "good.safetensors")
    bad = {**merged, **FAULTS[fault](base, merged)}
    save_file({k: v.contiguous() for k, v in bad.items()}, tmp_path / "bad.safetensors")

    with pytest.raises(VerificationError) as caught:
        verify(
            tmp_path / "bad.safetensors",
            base=case / "base.safetensors",
            adapters=[case / "lora.pt"],
            model=MODEL,
        )
    assert caught.value.findings[0].code == NAMED[fault]
    assert_blamed(caught.value, "merge", fault, case)


def test_verify_passes_the_good_file(case):
    report = verify(
        case / "good.safetensors", base=case / "base.safetensors", adapters=[case / "lora.pt"]
    )
    assert report.passed


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.startswith("untouched")])
def test_merge_publishes_nothing_when_its_arithmetic_is_wrong(fault, case, tmp_path, monkeypatch):
    plant_in_merge(monkeypatch, case, fault)

    with pytest.raises(VerificationError) as caught:
        merge(
            case / "base.safetensors", [case / "lora.pt"], tmp_path / "out.safetensors", model=MODEL
        )
    assert caught.value.findings[0].code == NAMED[fault]
    assert_blamed(caught.value, "merge", fault, case)
    assert list(tmp_path.iterdir()) == []


def test_what_the_weights_proof_would_miss_is_bisected(case, tmp_path, monkeypatch):
    from lora_export.verification.weights.whole_weights import WeightProof

    monkeypatch.setattr(WeightProof, "checks", lambda *_, **__: ())
    plant_in_merge(monkeypatch, case, "scaling 1 % too large")
    with pytest.raises(VerificationError) as caught:
        merge(
            case / "base.safetensors", [case / "lora.pt"], tmp_path / "out.safetensors", model=MODEL
        )
    assert_blamed(caught.value, "merge", "scaling 1 % too large", case)
    assert "inputs agree" in caught.value.attribution.detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_onnx_publishes_nothing_when_the_file_is_wrong(fault, case, tmp_path, monkeypatch):
    plant_in_file(monkeypatch, case, fault)

    with pytest.raises(VerificationError) as caught:
        export_onnx(
            case / "base.safetensors", [case / "lora.pt"], tmp_path / "out.onnx", model=MODEL
        )
    failed = {check.name for check in caught.value.checks if not check.passed}
    assert "every weight bit-equal" in failed
    assert_blamed(caught.value, "export", fault, case)
    assert list(tmp_path.iterdir()) == []


def assert_blamed(error, stage, fault, case):
    """Stage and module are those in which the fault was planted."""
    base, merged = load_file(case / "base.safetensors"), load_file(case / "good.safetensors")
    [tensor] = FAULTS[fault](base, merged)
    assert error.attribution.stage == stage
    assert error.attribution.module == tensor.removesuffix(".weight")


def plant_in_merge(monkeypatch, case, fault):
    from lora_export.execution.rows import Merge

    base, merged = load_file(case / "base.safetensors"), load_file(case / "good.safetensors")
    wrong = FAULTS[fault](base, merged)
    right = Merge.rows

    def faulty(merge, base, first, stop):
        rows = right(merge, base, first, stop)
        whole = wrong.get(merge.step.out.name)
        return rows if whole is None else whole[first:stop].contiguous()

    monkeypatch.setattr(Merge, "rows", faulty)


def plant_in_file(monkeypatch, case, fault):
    """The merge is right, and what is put into the graph is not."""
    from lora_export.onnx_export import export

    base, merged = load_file(case / "base.safetensors"), load_file(case / "good.safetensors")
    wrong = FAULTS[fault](base, merged)
    right = export.save_model

    def faulty(graph, path, weights, **settings):
        return right(graph, path, {**weights, **wrong}, **settings)

    monkeypatch.setattr(export, "save_model", faulty)
