"""One capture serves every adapter of a base; what is written is the same with and without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lora_export.api import export_onnx, verify
from lora_export.cli import main

ALPHA, RANK = 6, 4
FACTS = {"alpha": ALPHA, "fan_in_fan_out": False}


def adapter(path, seed, rank=RANK):
    draw = torch.Generator().manual_seed(seed)
    module = "vit.encoder.layer.0.attention.attention.query"
    factors = {
        f"{module}.lora_A": torch.randn(rank, 16, generator=draw),
        f"{module}.lora_B": torch.randn(16, rank, generator=draw),
    }
    torch.save(factors, path)
    return path


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Base and two adapters of a network without a mask: quick to capture."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vit") / "base"
    ViTForImageClassification(config).save_pretrained(folder)
    return folder, adapter(folder.parent / "a.pt", 1), adapter(folder.parent / "b.pt", 2)


def count_captures(monkeypatch):
    from lora_export.onnx_export import export

    made, right = [], export.capture
    monkeypatch.setattr(export, "capture", lambda *a, **k: made.append(1) or right(*a, **k))
    return made


@pytest.mark.own_captures
def test_a_second_adapter_takes_the_capture_of_the_first(vit, tmp_path, monkeypatch):
    base, first, second = vit
    made, cache = count_captures(monkeypatch), tmp_path / "cache"
    fresh = export_onnx(base, [second], tmp_path / "x.onnx", **FACTS, no_capture_cache=True)
    assert fresh.facts["graph"]["capture"] == "new"
    assert not cache.exists()
    export_onnx(base, [first], tmp_path / "a.onnx", **FACTS, capture_cache=cache, verify=False)
    assert len(made) == 2

    elsewhere = tmp_path / "copied" / "base"  # keyed by content, not by path
    shutil.copytree(base, elsewhere)
    config = json.loads((elsewhere / "config.json").read_text())
    config |= {"_name_or_path": "/somewhere/else", "transformers_version": "5.0.0"}
    (elsewhere / "config.json").write_text(json.dumps(config))
    again = tmp_path / "again"
    again.mkdir()
    report = export_onnx(elsewhere, [second], again / "x.onnx", **FACTS, capture_cache=cache)
    assert len(made) == 2
    assert report.passed
    assert report.facts["graph"] == {**fresh.facts["graph"], "capture": "cached"}
    assert (again / "x.onnx").read_bytes() == (tmp_path / "x.onnx").read_bytes()

    checked = verify(tmp_path / "x.onnx", base=base, adapters=[second], capture_cache=cache)
    assert len(made) == 2
    assert checked.facts["graph"]["capture"] == "cached"
    assert verify(
        tmp_path / "x.onnx", base=base, adapters=[second], no_capture_cache=True
    ).passed  # fmt: skip
    assert len(made) == 3


def test_what_merging_saves_is_counted_once_a_network_and_kind_of_adapter(
    vit, tmp_path, monkeypatch
):
    from lora_export.onnx_export.capture import node_count

    base, first, second = vit
    made, right, cache = [], node_count.capture, tmp_path / "cache"
    monkeypatch.setattr(node_count, "capture", lambda *a: made.append(1) or right(*a))

    def saved(adapter, **settings):
        settings = {**FACTS, "capture_cache": cache, "force": True, **settings}
        report = export_onnx(base, [adapter], tmp_path / "x.onnx", **settings)
        return report.facts["graph"]["saved"], len(made)

    fresh, _ = saved(first, no_capture_cache=True)
    assert saved(first) == (fresh, 2)
    assert saved(second) == (fresh, 2)
    checked = verify(tmp_path / "x.onnx", base=base, adapters=[second], capture_cache=cache)
    assert (checked.facts["graph"]["saved"], len(made)) == (fresh, 2)
    # Another rank, and another arithmetic around the same factors.
    larger = saved(adapter(tmp_path / "larger.pt", 1, rank=5))
    assert larger == ({**fresh, "parameters": fresh["parameters"] * 5 // 4}, 3)
    assert saved(first, alpha=4)[1] == 4
    [*counts] = cache.glob("*.count")
    assert len(counts) == 3
    for path in counts:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert saved(first) == (fresh, 5)
    assert saved(first) == (fresh, 5)


def test_other_settings_take_other_captures(vit, tmp_path, monkeypatch):
    base, first, _ = vit
    made, cache = count_captures(monkeypatch), tmp_path / "cache"
    settings = {**FACTS, "capture_cache": cache, "verify": False}
    for place, opset in enumerate((None, 20, 21, 21)):
        report = export_onnx(base, [first], tmp_path / f"{place}.onnx", **settings, opset=opset)
        assert report.facts["graph"]["opset"] == (opset or 20)
    assert len(made) == len(list(cache.iterdir())) == 3


def test_a_damaged_entry_is_captured_anew(vit, tmp_path):
    base, first, _ = vit
    cache, states = tmp_path / "cache", []
    for place in range(3):
        out = tmp_path / f"{place}" / "x.onnx"
        out.parent.mkdir()
        report = export_onnx(base, [first], out, **FACTS, capture_cache=cache, verify=False)
        states.append(report.facts["graph"]["capture"])
        [entry] = cache.iterdir()
        if place == 0:
            entry.write_bytes(entry.read_bytes()[:-7])
    assert states == ["new", "new", "cached"]
    assert len({(tmp_path / f"{p}" / "x.onnx").read_bytes() for p in range(3)}) == 1


def test_a_cache_that_cannot_be_written_is_one_warning(vit, tmp_path):
    base, first, _ = vit
    (tmp_path / "file").write_text("no folder")
    cache = tmp_path / "file" / "captures"
    report = export_onnx(
        base, [first], tmp_path / "x.onnx", **FACTS, capture_cache=cache, verify=False
    )
    assert report.facts["graph"]["capture"] == "new"
    assert [text for text in report.warnings if "could not be kept" in text]
    assert (tmp_path / "x.onnx").exists()


def test_the_captures_of_a_users_own_code_are_not_kept(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nINPUTS = ('input=float32[batch,4]',)\n"
        "def build():\n    return nn.Sequential(nn.Linear(4, 4))\n"
    )
    torch.manual_seed(0)
    torch.save({"0.weight": torch.randn(4, 4), "0.bias": torch.zeros(4)}, tmp_path / "base.pt")
    torch.save({"0.lora_A": torch.randn(2, 4), "0.lora_B": torch.randn(4, 2)}, tmp_path / "l.pt")
    report = export_onnx(
        tmp_path / "base.pt", [tmp_path / "l.pt"], tmp_path / "x.onnx", alpha=ALPHA,
        model=f"{tmp_path / 'net.py'}:build", capture_cache=tmp_path / "cache", verify=False,
    )  # fmt: skip
    assert report.facts["graph"]["capture"] == "new"
    assert not (tmp_path / "cache").exists()


def test_the_command_line_says_where_the_graph_comes_from(vit, tmp_path, monkeypatch):
    base, first, _ = vit
    monkeypatch.setenv("LORA_EXPORT_CAPTURE_CACHE", str(tmp_path / "by-variable"))
    arguments = ["onnx", str(base), str(first), "--alpha", "6", "--no-fan-in-fan-out",
                 "--no-verify", "--force", "-o", str(tmp_path / "x.onnx")]  # fmt: skip
    said = [CliRunner().invoke(main, arguments).output for _ in range(2)]
    assert ["captured by an earlier run" in text for text in said] == [False, True]
    shown = CliRunner().invoke(main, [*arguments, "--no-capture-cache", "--json"])
    assert json.loads(shown.stdout)["graph"]["capture"] == "new"
    assert len(list(Path(tmp_path / "by-variable").iterdir())) == 1
