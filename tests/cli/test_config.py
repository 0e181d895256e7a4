"""The option --config: what wins, what is refused, and what does not apply to an artefact."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from lora_export.cli import main


@pytest.fixture
def files(tmp_path, monkeypatch):
    base = {"m.weight": torch.randn(12, 8), "n.weight": torch.randn(4, 4)}
    adapter = {"m.lora_A": torch.randn(2, 8), "m.lora_B": torch.randn(12, 2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(adapter, tmp_path / "lora.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words, **settings):
    return CliRunner().invoke(main, [*words], **settings)


def planned(config, *words, folder=None, **env):
    """Return the report of a dry run with the text `config` as --config."""
    place = folder or "."
    Path(place, "c.toml").write_text(config)
    words = ("merge", "base.safetensors", "lora.safetensors", "--dry-run", *words)
    result = run(*words, "--config", f"{place}/c.toml", env=env)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def alpha_of(document):
    [tensor] = [t for t in document["plan"]["tensors"] if t["action"] == "merge"]
    return tensor["updates"][0]["alpha"]


ORDER = {
    "the table of the command": (1.0, {}, ()),
    "the environment before the file": (2.0, {"LORA_EXPORT_ALPHA": "2"}, ()),
    "the command line before all": (3.0, {"LORA_EXPORT_ALPHA": "2"}, ("--alpha", "3")),
}


@pytest.mark.parametrize("case", ORDER)
def test_which_value_wins(case, files):
    alpha, env, words = ORDER[case]
    config = "alpha = 7\njson = true\n[merge]\nalpha = 1\n[onnx]\nalpha = 8\n"
    assert alpha_of(planned(config, *words, **env)) == alpha


def test_a_key_of_all_commands_is_taken_where_the_command_has_it(files):
    assert alpha_of(planned('json = true\nalpha = 7\nopset = 18\nbase = "b"\n')) == 7.0


def test_the_file_may_be_named_by_the_environment(files):
    (files / "c.toml").write_text("alpha = 5\n")
    words = ("merge", "base.safetensors", "lora.safetensors", "--dry-run", "--json")
    result = run(*words, env={"LORA_EXPORT_CONFIG": "c.toml"})
    assert alpha_of(json.loads(result.stdout)) == 5.0


def test_a_needed_option_and_paths_beside_the_file(files):
    (files / "sub").mkdir()
    (files / "sub" / "h.toml").write_text("alpha = 6\n")
    config = 'hparams = "h.toml"\njson = true\n[merge]\noutput = "out.safetensors"\n'
    document = planned(config, folder="sub")
    assert document["output"] == "sub/out.safetensors"
    assert alpha_of(document) == 6.0


def test_values_of_the_file_are_named_in_the_manifest_as_given(files):
    (files / "c.toml").write_text('[merge]\nalpha = 4\nweight = [0.5]\ndtype = "float16"\n')
    words = ("merge", "base.safetensors", "lora.safetensors", "-o", "out.safetensors")
    assert run(*words, "--config", "c.toml", "-q").exit_code == 0
    manifest = json.loads(next(files.glob("out*.json")).read_text())
    assert manifest["options"]["alpha"] == 4.0
    assert manifest["options"]["dtype"] == "float16"
    assert manifest["options"]["weight"] == [0.5]


MISTAKES = 'alhpa = 8\n[merge]\nseed = "x"\n[verify]\nundo = "u"\n[onnx]\nrecipe = "exakt"\n'


def test_every_mistake_is_named_with_its_line(files):
    (files / "c.toml").write_text(MISTAKES)
    result = run("merge", "base.safetensors", "lora.safetensors", "--config", "c.toml", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "usage"
    found = sorted((p["where"], p["message"], p["hint"].split(":")[0]) for p in error["problems"])
    assert found == [
        ("c.toml:1", "unknown key 'alhpa'", "did you mean alpha?"),
        ("c.toml:3", 'seed is "x"', "it takes a whole number"),
        ("c.toml:5", "unknown key 'undo'", "one of"),
        ("c.toml:7", 'recipe is "exakt"', "did you mean 'exact'?"),
    ]
    assert result.stderr.count("error:") == 4


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        (None, 3, "no such file"),
        ("alpha =\n", 2, "line 1"),
        ("inspect = 1\n", 2, "unknown key 'inspect'"),
        ('config = "other.toml"\n', 2, "unknown key 'config'"),
    ],
)
def test_a_file_that_is_no_config(text, status, words, files):
    if text is not None:
        (files / "c.toml").write_text(text)
    result = run("inspect", "base.safetensors", "--config", "c.toml")
    assert result.exit_code == status
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_the_option_verify_beside_the_table_verify(files):
    config = "no-verify = true\n[verify]\nseed = 1\n[merge]\njson = true\nalpha = 4\n"
    assert planned(config)["proof"]["level"] == "none"


def test_usage_errors_are_json_where_the_file_says_so(files):
    (files / "c.toml").write_text("json = true\n")
    result = run("merge", "base.safetensors", "--config", "c.toml")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "usage"


# What is meant for many runs must break none that it says nothing about.
AMBIENT = [
    ({"LORA_EXPORT_MAX_SHARD_SIZE": "5GB"}, ""),
    ({"LORA_EXPORT_TOKENIZER": "adapter"}, ""),
    ({}, 'max-shard-size = "5GB"\ntokenizer = "adapter"\n'),
]


@pytest.mark.parametrize(("env", "config"), AMBIENT)
def test_options_of_folders_do_not_break_the_merge_of_a_file(env, config, files):
    assert planned(f"json = true\nalpha = 4\n{config}", **env)["ok"]


def test_an_option_of_folders_on_the_command_line_is_refused_for_a_file(files):
    (files / "c.toml").write_text("alpha = 4\n")
    words = ("merge", "base.safetensors", "lora.safetensors", "--config", "c.toml", "--dry-run")
    result = run(*words, "--max-shard-size", "5GB")
    assert (result.exit_code, "--max-shard-size" in result.stderr) == (2, True)


@pytest.mark.parametrize("config", ["", 'dtype = "float16"\n'])
def test_a_dtype_for_checkpoints_does_not_break_verify_of_onnx(config, files):
    (files / "c.toml").write_text(config)
    (files / "a.onnx").write_bytes(b"")
    env = {} if config else {"LORA_EXPORT_DTYPE": "float16"}
    result = run("verify", "a.onnx", "--config", "c.toml", env=env)
    assert "there is no manifest" in result.stderr
    assert "--dtype" not in result.stderr
    result = run("verify", "a.onnx", "--dtype", "float16")
    assert (result.exit_code, "--dtype" in result.stderr) == (2, True)
