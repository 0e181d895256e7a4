"""The last line of a report is a command that works when it is copied."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lora_export.cli import main

HARD = 'a b\'s "base" $x'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which every path must be quoted, and one looks like an option."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / HARD).mkdir()
    torch.manual_seed(0)
    save_file({"m.weight": torch.randn(12, 8)}, tmp_path / HARD / "model.safetensors")
    save_file({"m.weight": torch.randn(12, 8)}, tmp_path / "base.safetensors")
    factors = {"m.lora_A": torch.randn(2, 8), "m.lora_B": torch.randn(12, 2)}
    save_file(factors, tmp_path / "-lora.safetensors")
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, list(words))


def following(text):
    """The words of the command that a text ends with."""
    _, found, last = text.rpartition("\nnext: ")
    assert found, text
    program, *words = shlex.split(last.replace("\\\n", " "))
    assert program == "lora-export"
    return words


@pytest.mark.parametrize("base", [HARD, "base.safetensors"])
def test_each_command_leads_to_the_next(folder, base):
    planned = run("merge", base, "./-lora.safetensors", "--alpha", "4", "--dry-run")
    assert planned.exit_code == 0, planned.output
    merge = following(planned.stdout)
    merged = run(*merge)
    assert merged.exit_code == 0, merged.output
    verify = following(merged.stdout)
    assert verify[0] == "verify"
    verified = run(*verify)
    assert verified.exit_code == 0, verified.output
    inspected = run(*following(verified.stdout))
    assert inspected.exit_code == 0, inspected.output
    assert following(inspected.stdout) == verify
    again = run("merge", base, "./-lora.safetensors", "--alpha", "4", "--dry-run")
    assert following(again.stdout) != merge  # the output exists now


def test_what_was_not_proven_is_proven_next(folder):
    words = ("merge", "base.safetensors", "./-lora.safetensors", "--alpha", "4", "--no-verify")
    written = run(*words, "-o", "out.safetensors")
    assert written.stdout.startswith("NOT PROVED: ")
    proof = following(written.stdout)
    assert {"--base", "--adapter"} < set(proof)
    proven = run(*proof)
    assert proven.exit_code == 0, proven.output
    assert proven.stdout.startswith("PROVED: ")


def test_an_undone_merge_is_inspected_next(folder):
    words = ("merge", "base.safetensors", "./-lora.safetensors", "--alpha", "4")
    run(*words, "-o", "out.safetensors", "--undo", "kept.undo")
    restored = run("unmerge", "out.safetensors", "--undo", "kept.undo", "-o", "again.safetensors")
    assert restored.stdout.startswith("RESTORED: ")
    assert run(*following(restored.stdout)).exit_code == 0


def test_a_refusal_ends_with_its_hint(folder):
    refused = run("merge", "base.safetensors", "./-lora.safetensors", "-o", "out.safetensors")
    assert refused.stdout.startswith("REFUSED: -lora.safetensors: m: alpha is not in the")
    *_, last = refused.stderr.strip().splitlines()
    assert last.startswith("next: give the lora_alpha used in training: --alpha 16")
    assert refused.stderr.count("--alpha 16") == 1


def test_the_next_command_is_part_of_the_json(folder):
    words = ("merge", "base.safetensors", "./-lora.safetensors", "--alpha", "4", "--json")
    document = json.loads(run(*words, "-o", "out.safetensors").stdout)
    assert document["next"] == "lora-export verify out.safetensors"
    assert document["verdict"]["word"] == "PROVED"
    assert document["findings"] == []
    refused = json.loads(run(*words, "-o", "out.safetensors").stdout)
    assert (refused["verdict"]["word"], refused["next"]) == ("REFUSED", "")


def test_an_adapter_leads_to_its_base(folder):
    peft = folder / "adapter"
    peft.mkdir()
    prefix = "base_model.model.m.lora_"
    factors = {f"{prefix}A.weight": torch.randn(2, 8), f"{prefix}B.weight": torch.randn(12, 2)}
    save_file(factors, peft / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["m"],
        "base_model_name_or_path": HARD,
    }
    (peft / "adapter_config.json").write_text(json.dumps(config))
    alone = run("inspect", "adapter")
    assert "next:" not in alone.stdout  # a folder without config.json is no base
    assert "found neither beside it nor in the local cache" in alone.stdout.replace("\n  ", " ")
    (folder / HARD / "config.json").write_text("{}")
    found = run("inspect", "adapter")
    assert "1 x lora  r=2  alpha=4  scaling=2  (m)" in found.stdout
    planned = run(*following(found.stdout))
    assert planned.exit_code == 0, planned.output
    config["r"] = 3
    (peft / "adapter_config.json").write_text(json.dumps(config))
    other = run("inspect", "adapter")
    assert "contradiction: the factors of m have rank 2, and " in other.stdout
    assert "next:" not in other.stdout


def test_the_command_that_explains_a_refusal_runs(folder):
    bare = run("verify", "gone.safetensors")
    assert bare.exit_code == 3
    *_, more, last = bare.stderr.strip().splitlines()
    assert last.startswith("next: ")
    assert more == "more: lora-export explain input/missing-file"
    explained = run("explain", "input/missing-file")
    assert explained.exit_code == 0, explained.output
