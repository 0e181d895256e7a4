"""Room on the disk is looked at before a byte is written; options without use are told."""

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge, verify
from lora_export.errors import InputError, OutputError, StorageError, UsageError
from lora_export.report.document import report_json
from lora_export.report.text import report_text

BASE = {"fc.weight": torch.ones(6, 5), "fc.bias": torch.ones(6)}
ADAPTER = {"fc.lora_A": torch.ones(2, 5), "fc.lora_B": torch.ones(6, 2)}
NEEDED = 36 * 4 + len("{}")


@pytest.fixture
def call(tmp_path):
    (tmp_path / "base").mkdir()
    save_file(BASE, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file(ADAPTER, tmp_path / "l.safetensors")

    def run(output="out", **settings):
        target = tmp_path / output if output else None
        settings = {"alpha": 4.0, **settings}
        return merge(tmp_path / "base", [tmp_path / "l.safetensors"], target, **settings)

    return run


def with_free(monkeypatch, blocks):
    status = SimpleNamespace(f_bavail=blocks, f_frsize=1, f_blocks=10**9)
    monkeypatch.setattr(os, "statvfs", lambda _: status)


def space_of(report):
    space = report_json(report)["space"]
    assert 0 < space["memory"] < 2**30
    return space["needed"], space["free"]


@pytest.mark.parametrize("free", [NEEDED - 1, NEEDED])
def test_too_little_room_is_refused_before_writing(free, call, monkeypatch, tmp_path):
    with_free(monkeypatch, free)
    before = sorted(tmp_path.iterdir())
    dry = call(dry_run=True)
    assert space_of(dry) == (NEEDED, free)
    text = " ".join(report_text(dry, verbose=False).split())
    assert f"it takes {NEEDED} bytes, of {free} that are free there" in text
    assert "MB of memory" in text
    if free < NEEDED:
        with pytest.raises(StorageError, match=f"{NEEDED} bytes .* {free} are free"):
            call()
        assert sorted(tmp_path.iterdir()) == before
    else:
        assert space_of(call()) == (NEEDED, free)


def test_a_dry_run_without_a_place_tells_what_is_needed(call):
    report = call(None, dry_run=True)
    assert space_of(report) == (NEEDED, None)
    assert "free" not in report_text(report, verbose=False)


@pytest.mark.parametrize("options", [{"dry_run": True}, {}, {"undo": "absent/undo"}])
def test_a_missing_folder_is_found_before_anything_is_read(options, call, tmp_path):
    (tmp_path / "l.safetensors").unlink(missing_ok=True)
    output = "out" if "undo" in options else "absent/out"
    with pytest.raises(OutputError, match="absent does not exist"):
        call(output, **options)


def test_what_is_left_out_is_in_the_text(call, tmp_path):
    more = {**ADAPTER, **{f"x{n}": torch.ones(1) for n in range(5)}}
    save_file(more, tmp_path / "l.safetensors")
    text = report_text(call(allow_unmatched=["x*"], dry_run=True), verbose=False)
    assert "left out 5 tensors: x0, x1, x2 and 2 more" in text


@pytest.mark.parametrize(
    ("proof", "error", "words"),
    [
        ({"input": ("garbage",)}, UsageError, "not an input description"),
        ({"atol": -1.0}, UsageError, "--atol"),
        ({"atol": float("inf")}, UsageError, "--atol"),
        ({"rtol": float("nan")}, UsageError, "--rtol"),
        ({"inputs": "/nope.npz"}, InputError, "no such file"),
    ],
)
def test_options_of_the_proof_are_looked_at_without_a_model(proof, error, words, call, tmp_path):
    with pytest.raises(error, match=words):
        call(**proof)
    call("good")
    with pytest.raises(error, match=words):
        verify(tmp_path / "good", **proof)


@pytest.mark.parametrize("verified", [True, False])
def test_options_without_use_are_told(verified, call):
    told = call(input=["x=int64[n]"], atol=0.0, seed=3, verify=verified).warnings
    assert "no model was run, so --input, --atol, --seed had no effect" in told
    assert not any("no effect" in words for words in call("other").warnings)


def test_verify_by_manifest_alone_tells_what_it_did_not_use(call, tmp_path):
    call()
    assert verify(tmp_path / "out").warnings == ()
    told = verify(tmp_path / "out", alpha=4.0, model="m.py:build", seed=1)
    (words,) = told.warnings
    assert "--alpha, --model, --seed had no effect" in words
