"""What a failed verification, and a plan for ONNX, say and do not say."""

import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.cli.main import main
from lora_export.records import Card, Checkpoint, MergePlan
from lora_export.report.result import Report
from lora_export.report.text import report_text


def adapter(path):
    save_file({"m.lora_A": torch.randn(2, 4), "m.lora_B": torch.randn(6, 2)}, path)
    return path


def test_verify_tells_which_input_is_another_and_publishes_nothing(tmp_path):
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    save_file({"m.weight": torch.randn(6, 4)}, base)
    own, other = adapter(tmp_path / "own.safetensors"), adapter(tmp_path / "other.safetensors")
    merge(base, [own], out, alpha=4)
    words = ["verify", str(out), "--base", str(base), "--adapter", str(other)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 5
    assert "nothing was published" not in result.output
    assert "other.safetensors: not what the manifest records, by the SHA-256" in result.stderr
    assert "(check: inputs are those of the manifest)" in result.stderr
    assert "move its manifest away" in result.stderr
    assert "its adapters are own.safetensors" in result.stderr


def test_a_plan_for_onnx_lists_no_edits_of_files_that_it_does_not_write(tmp_path):
    card = Card({}, edits=("written anew",))
    plan = MergePlan(Checkpoint(tmp_path, "folder", ()), (), "auto", (), card=card)
    assert "README.md" in report_text(Report("merge", plan=plan), verbose=False)
    assert "README.md" not in report_text(Report("onnx", plan=plan), verbose=False)
    graph = {"nodes": 1, "initializers": 1, "capture": "now", "hash": "ab", "saved": None}
    verified = Report("verify", plan=plan, facts={"graph": graph})
    assert "README.md" not in report_text(verified, verbose=False)
