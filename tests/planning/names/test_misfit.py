"""An adapter of another model: one problem that says so, and not one a module."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.cli import main
from lora_export.errors import FitError
from lora_export.planning.names.misfit import other_bases
from lora_export.records import Adapter, Checkpoint

SMALL = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "vocab_size": 8, "max_position_embeddings": 8,
}  # fmt: skip
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SMALL}


@pytest.fixture
def case(tmp_path):
    (tmp_path / "base").mkdir()
    weights = {f"m.layers.{n}.q.weight": torch.ones(6, 4) for n in range(9)}
    save_file(weights, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def problems(case, modules):
    (case / "lora").mkdir()
    low = {f"{module}.lora_A.weight": torch.ones(2, 4) for module in modules}
    low |= {f"{module}.lora_B.weight": torch.ones(6, 2) for module in modules}
    save_file(low, case / "lora" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/other",
    }  # fmt: skip
    (case / "lora" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FitError) as caught:
        merge(case / "base", [case / "lora"], case / "out")
    return caught.value.problems


def test_no_module_fits(case):
    [problem] = problems(case, [f"x.block{n}.key" for n in range(14)])
    text = str(problem)
    assert "0 of 14 modules are in this base" in text
    assert "x.block0.key, x.block1.key, x.block10.key and 11 more" in text
    assert "m.layers.0.q.weight" in problem.hint
    assert "LlamaForCausalLM (model_type llama)" in problem.hint
    assert "org/other" in problem.hint
    assert not any(word in text for word in ("--allow-unmatched", ".conv.weight", ".w,"))


def test_some_modules_fit(case):
    fitting = ["m.layers.0.q", "m.layers.1.q"]
    found = problems(case, [*fitting, *(f"m.layers.{n}.key" for n in range(9))])
    *five, rest = found
    assert len(five) == 5
    assert all("the base has no m.layers." in str(problem) for problem in five)
    assert "4 more of the 11 modules are not in this base" in rest.message
    assert "--allow-unmatched" in rest.hint
    assert "org/other" in rest.hint
    assert not any(".conv.weight" in str(problem) for problem in found)


def test_without_transformers_its_names_may_be_lacking(case, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else real(name)
    )
    [problem] = problems(case, ["m.layers.0.q", *(f"m.layers.{n}.key" for n in range(9))])
    assert "9 of 10 modules are not in this base" in problem.message
    assert problem.hint.startswith("pip install 'lora-export[hf]'")
    assert "org/other" in problem.hint


CACHED = "/c/models--org--X-1B/snapshots/0123"


@pytest.mark.parametrize(
    ("root", "trained_on", "differ"),
    [
        (CACHED, "org/x-1b", False),
        (CACHED, "/elsewhere/X-1B", False),
        (CACHED, CACHED, False),
        (CACHED, "unsloth/X-1B-bnb-4bit", False),
        (CACHED, "", False),
        (CACHED, "org/X-7B", True),
        ("/here/base", "./there/base/", False),
        ("/here/base", "org/X", True),
    ],
)
def test_the_adapter_names_another_base(root, trained_on, differ):
    adapter = Adapter(Path("x"), "peft", (), (), trained_on=trained_on)
    told = other_bases(Checkpoint(Path(root), "folder", ()), [adapter, adapter])
    assert len(told) == differ


COMMIT, OLDER = "ab" * 20, "cd" * 20


@pytest.mark.parametrize(
    ("revision", "differ"),
    [
        ("", False),
        (COMMIT, False),
        (OLDER, True),
        ("main", False),
        ("v1", True),
        ("never-fetched", False),
        ("../refs/v1", False),
    ],
)
def test_the_adapter_names_another_revision(revision, differ, tmp_path):
    repository = tmp_path / "models--org--x"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    base = Checkpoint(repository / "snapshots" / COMMIT, "folder", ())
    adapter = Adapter(Path("x"), "peft", (), (), trained_on="org/x", revision=revision)
    told = other_bases(base, [adapter])
    assert len(told) == differ
    assert all(COMMIT in str(problem) and revision in str(problem) for problem in told)


@pytest.fixture
def other(case):
    """An adapter that fits the base by its shapes, and names another one."""
    (case / "lora").mkdir()
    low = {"m.layers.0.q.lora_A.weight": torch.randn(2, 4)}
    low["m.layers.0.q.lora_B.weight"] = torch.randn(6, 2)
    save_file(low, case / "lora" / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"],
        "base_model_name_or_path": "org/other",
    }  # fmt: skip
    (case / "lora" / "adapter_config.json").write_text(json.dumps(config))
    return case


@pytest.mark.parametrize("flags", [[], ["-q", "--json"], ["--json"], ["--dry-run"]])
def test_another_base_of_the_right_shape_is_told(flags, other):
    words = ["merge", *(str(other / name) for name in ("base", "lora"))]
    result = CliRunner().invoke(main, [*words, "-o", str(other / "out"), "--no-verify", *flags])
    assert result.exit_code == 0, result.output
    warning = "by adapter_config.json it was trained on org/other"
    assert (f"note: {warning}" in result.stderr) is ("-q" not in flags)
    if "--json" in flags:
        assert any(one.startswith(warning) for one in json.loads(result.stdout)["warnings"])


def test_quiet_leaves_out_the_note_and_strict_refuses_all_the_same(other):
    words = ["merge", *(str(other / name) for name in ("base", "lora")), "-o", str(other / "out")]
    quiet = CliRunner().invoke(main, [*words, "--no-verify", "-q"])
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    strict = CliRunner().invoke(main, [*words, "--no-verify", "-q", "--strict", "--force"])
    assert strict.exit_code == 4
    assert "it was trained on org/other" in strict.stderr


def test_another_base_is_in_json_and_in_the_report(other):
    words = ["merge", *(str(other / name) for name in ("base", "lora", "out"))]
    words.insert(3, "-o")
    result = CliRunner().invoke(main, [*words, "--no-verify", "--json"])
    assert any("org/other" in line for line in json.loads(result.stdout)["warnings"])


def test_strict_tells_where_it_can_compare_nothing(other):
    adapter = loralib(other, "l.safetensors")
    report = merge(other / "base", [adapter], other / "o1", alpha=4, strict=True, verify=False)
    assert any("no adapter names the base" in warning for warning in report.warnings)
    file, output = other / "base" / "model.safetensors", other / "o2.safetensors"
    report = merge(file, [other / "lora"], output, strict=True, verify=False)
    assert any("model.safetensors is a file" in warning for warning in report.warnings)


def test_strict_refuses_another_base(other):
    with pytest.raises(FitError, match="trained on org/other; the base given is base"):
        merge(other / "base", [other / "lora"], other / "out", strict=True)
    assert not (other / "out").exists()


def loralib(case, name):
    low = {"m.layers.0.q.lora_A": torch.randn(2, 4), "m.layers.0.q.lora_B": torch.randn(6, 2)}
    save_file(low, case / name)
    return case / name


def test_a_base_that_is_a_merge_is_told(case):
    merge(case / "base", [loralib(case, "a.safetensors")], case / "one", alpha=4, verify=False)
    report = merge(
        case / "one", [loralib(case, "b.safetensors")], case / "two", alpha=4, verify=False
    )
    told = [text for text in report.warnings if "itself a merge" in text]
    assert len(told) == 1
    assert "a.safetensors" in told[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "the folder has no config.json"),
        ({"model_type": "nobodys", "architectures": ["NobodysModel"]}, "transformers cannot load"),
        (
            {"model_type": "nobodys", "architectures": ["BertModel"], **SMALL},
            "transformers cannot load",
        ),
    ],
)
def test_why_the_proof_is_by_weights_only(case, config, words):
    (case / "base" / "config.json").unlink()
    if config:
        (case / "base" / "config.json").write_text(json.dumps(config))
    report = merge(case / "base", [loralib(case, "a.safetensors")], case / "out", alpha=4)
    assert any(words in warning for warning in report.warnings), report.warnings
    assert any("by weights only" in warning for warning in report.warnings)
