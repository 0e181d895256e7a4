"""The command `explain`, and the lines of a refusal that lead to it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from lora_export.cli import main
from lora_export.refusals import causes, checks, statuses


def run(*words):
    return CliRunner().invoke(main, words)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fit/no-module"], "  meaning: The adapter names modules that the base does not have."),
        (["5"], "  meaning: the result is not what it must be; nothing was published"),
        (["merged", "elements"], "  compares: Every merged element with the same sum in float64,"),
        (["merged elements"], "  compares: Every merged element with the same sum in float64,"),
    ],
)
def test_an_entry_as_text(words, line):
    result = run("explain", *words)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == " ".join(words)
    assert any(one.startswith(line) for one in result.stdout.splitlines())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_without_a_word_all_are_listed():
    listed = [line.strip() for line in run("explain").stdout.splitlines()]
    assert {*causes(), *statuses(), *checks()} <= {*listed}
    found = json.loads(run("explain", "--json").stdout)["explained"]
    assert found.keys() == {*causes(), *statuses(), *checks()}


def test_an_entry_as_json():
    document = json.loads(run("explain", "fit/no-module", "--json").stdout)
    assert document["explained"] == {"fit/no-module": dict(causes()["fit/no-module"].facts)}


def test_an_unknown_word_is_refused_with_the_nearest():
    result = run("explain", "fit/no-modul", "--json")
    assert result.exit_code == 2
    assert "fit/no-module" in json.loads(result.stdout)["error"]["hint"]
    assert "did you mean fit/no-module" in result.stderr


@pytest.fixture
def files(tmp_path, monkeypatch):
    save_file({"m.weight": np.ones((4, 4), np.float32)}, tmp_path / "base.safetensors")
    factors = {f"{m}.lora_{r}": np.ones((2, 4) if r == "A" else (4, 2), np.float32)
               for m in ("m", "x") for r in "AB"}  # fmt: skip
    save_file(factors, tmp_path / "two.safetensors")
    save_file({k: v for k, v in factors.items() if k[0] == "m"}, tmp_path / "one.safetensors")
    monkeypatch.chdir(tmp_path)


def test_a_refusal_names_each_of_its_causes_once(files):
    words = ("merge", "base.safetensors", "two.safetensors", "-o", "o.safetensors")
    result = run(*words)
    more = [line for line in result.stderr.splitlines() if line.startswith("more: ")]
    assert "more: lora-export explain fit/no-module" in more
    assert len(more) == len({*more})
    for line in more:
        assert run(*line.split()[2:]).exit_code == 0


def test_json_has_the_cause_of_every_problem(files):
    words = ("merge", "base.safetensors", "one.safetensors", "-o", "o.safetensors", "--json")
    error = json.loads(run(*words).stdout)["error"]
    assert (error["code"], error["explain"]) == ("usage", "usage/missing-fact")
    assert {problem["explain"] for problem in error["problems"]} <= {*causes()}
    error = json.loads(run("merge", "base.safetensors", "--json").stdout)["error"]
    assert error["explain"] == "usage/command-line"
