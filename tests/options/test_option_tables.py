"""Tables of options in a TOML file: right values by keyword, and every mistake with its line."""

import pytest

from lora_export.option_tables import read_options
from lora_export.options import VERBS
from lora_export.toml_file import read_toml

EVERY = tuple(option for verb in ("merge", "onnx", "verify") for option in VERBS[verb])


def read(folder, text, place=(), options=EVERY, **settings):
    path = folder / "o.toml"
    path.write_text(text)
    return read_options(read_toml(path), place, options, **settings)


RIGHT = {
    "alpha = 8": ("alpha", 8),
    "alpha = 0.5": ("alpha", 0.5),
    'enable-lora = "1,0,1"': ("enable_lora", "1,0,1"),
    "enable-lora = [true, false, 1]": ("enable_lora", "1,0,1"),
    "fan-in-fan-out = true": ("fan_in_fan_out", True),
    "no-fan-in-fan-out = true": ("fan_in_fan_out", False),
    "no-verify = true": ("verify", False),
    "verify = false": ("verify", False),
    "trust-config = true": ("trust_file", False),
    "weight = [1, 0.5]": ("weight", (1, 0.5)),
    "weight = 2": ("weight", (2,)),
    'allow-unmatched = ["a*", "b"]': ("allow_unmatched", ("a*", "b")),
    "seed = 0": ("seed", 0),
    'recipe = "exact"': ("recipe", "exact"),
    'model = "package.module:build"': ("model", "package.module:build"),
}


@pytest.mark.parametrize("line", RIGHT)
def test_a_right_value(line, tmp_path):
    name, value = RIGHT[line]
    assert read(tmp_path, line) == ({name: value}, [])


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    lines = 'hparams = "h.toml"\ninputs = "/x.npz"\nbase = "~/b"\nadapter = ["a", "../b"]\n'
    values, problems = read(tmp_path, f'{lines}model = "net.py:build"')
    assert problems == []
    assert {name: str(value) for name, value in values.items() if name != "adapters"} == {
        "hparams": f"{tmp_path}/h.toml",
        "inputs": "/x.npz",
        "base": "/home/me/b",
        "model": f"{tmp_path}/net.py:build",
    }
    assert [str(path) for path in values["adapters"]] == [f"{tmp_path}/a", f"{tmp_path}/../b"]


WRONG = {
    "alhpa = 8": ("unknown key 'alhpa'", "did you mean alpha?"),
    "allow_noop = true": ("unknown key 'allow_noop'", "did you mean allow-noop?"),
    "nmae = 1": ("unknown key 'nmae'", "did you mean name?"),
    "zzzzzzzz = 1": ("unknown key 'zzzzzzzz'", "one of: adapter, allow-lossy"),
    'alpha = "8"': ('alpha is "8"', "it takes a number"),
    "alpha = true": ("alpha is true", "it takes a number"),
    "seed = 1.0": ("seed is 1.0", "it takes a whole number"),
    "seed = -1": ("seed is -1", "it takes 0 or more"),
    "dry-run = 1": ("dry-run is 1", "it takes true or false"),
    'recipe = "exakt"': ('recipe is "exakt"', "did you mean 'exact'?"),
    'recipe = "loralib"': ('recipe is "loralib"', "one of: auto, peft, peft-safe, exact"),
    'weight = [1, "2"]': ('weight is [1, "2"]', "it takes a number, or a list of these"),
    "hparams = 1": ("hparams is 1", "it takes a path in quotes"),
    'hparams = ""': ('hparams is ""', "it takes a path in quotes"),
    "enable-lora = [0, 0]": ("enable-lora is [0, 0]", "it takes a text such as"),
    "output = { a = 1 }": ('output is {"a": 1}', "it takes a path in quotes"),
    "seed = 2026-01-01": ('seed is "2026-01-01"', "it takes a whole number"),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_named_with_its_line(line, tmp_path):
    message, hint = WRONG[line]
    text = f"[t]\nname = 'is the caller\\u0027s'\n{line}\n"
    values, [problem] = read(tmp_path, text, ("t",), others=("name",))
    assert values == {}
    assert problem.message == message
    assert problem.where == f"{tmp_path}/o.toml:3"
    assert problem.hint.startswith(hint)


def test_all_mistakes_at_once_beside_what_is_right(tmp_path):
    values, problems = read(tmp_path, "a = 1\nalpha = 8\nseed = 'x'\nverify = true\nno-verify=true")
    assert values == {"alpha": 8, "verify": True}
    assert [(p.where.rpartition(":")[2], p.message) for p in problems] == [
        ("1", "unknown key 'a'"),
        ("3", 'seed is "x"'),
        ("5", "no-verify and verify are one option"),
    ]
