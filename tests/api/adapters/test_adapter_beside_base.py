"""A base's folder that holds an adapter too: transformers must not load it inside the proof."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig
from peft_folders import llama, save
from safetensors.torch import load_file

from lora_export.api import export_onnx, merge
from lora_export.checkpoint.index import read_checkpoint
from lora_export.models.choose import folder_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOLD = "the base's folder holds an adapter too"


@pytest.fixture
def place(tmp_path):
    """base (with an adapter in it), and that adapter alone: inner; another: outer."""
    unmerged = {}
    for name, targets in (("outer", ["o_proj"]), ("inner", ["q_proj", "v_proj"])):
        (tmp_path / name).mkdir()
        config = LoraConfig(r=2, lora_alpha=4, target_modules=targets)
        unmerged[name] = save(tmp_path / name, llama(layers=1), config)
        merged = unmerged[name]().merge_and_unload()
        merged.save_pretrained(tmp_path / f"{name}-by-peft")
    for file in (tmp_path / "inner/lora").glob("adapter_*"):
        shutil.copy(file, tmp_path / "inner/base")
    shutil.move(tmp_path / "inner/base", tmp_path / "base")
    return tmp_path


def same_as_peft(place, which):
    found = load_file(place / "out/model.safetensors")
    expected = load_file(place / f"{which}-by-peft/model.safetensors")
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], expected[k]) for k in found
    )


@pytest.mark.parametrize(
    ("adapter", "which"),
    [("base", "inner"), ("base/adapter_model.safetensors", "inner"), ("inner/lora", "inner"),
     ("outer/lora", "outer")],
)  # fmt: skip
def test_the_proof_is_of_what_was_named(adapter, which, place):
    report = merge(place / "base", [place / adapter], place / "out")
    assert "merged = unmerged in float64" in [check.name for check in report.checks]
    assert same_as_peft(place, which)
    assert not list((place / "out").glob("adapter_*"))
    assert any(TOLD in words for words in report.warnings) == (which == "outer")


def test_both_are_merged_where_both_are_named(place):
    report = merge(place / "base", [place / "base", place / "outer/lora"], place / "out")
    assert all(check.passed for check in report.checks)
    assert not report.warnings


def test_a_capture_is_the_same_with_and_without_it(place):
    first = export_onnx(place / "base", [place / "outer/lora"], place / "one.onnx")
    for file in (place / "base").glob("adapter_*"):
        file.unlink()
    second = export_onnx(place / "base", [place / "outer/lora"], place / "two.onnx", verify=False)
    graphs = [report.facts["graph"] for report in (first, second)]
    assert [graph["capture"] for graph in graphs] == ["new", "cached"]
    assert (place / "one.onnx").read_bytes() == (place / "two.onnx").read_bytes()


def test_nothing_is_left_of_the_folder_that_transformers_was_given(place, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    base = read_checkpoint(place / "base")
    model = folder_model(base, ()).load(base, full={}, untied=())
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert not list((tmp_path / "temporary").iterdir())
