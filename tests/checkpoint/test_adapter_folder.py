"""Folders as PEFT, the Trainer and the Hub leave them: one adapter is read, or one is asked for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import inspect
from lora_export.checkpoint.index import read_adapter_file
from lora_export.errors import InputError

KEY = "base_model.model.a.lora_A.weight"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"


def put(folder: Path, *, name="adapter_model.safetensors", value=1.0, config=CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save = save_file if name.endswith(".safetensors") else torch.save
    save({KEY: torch.full((2, 2), value)}, folder / name)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def refusal(path, read=read_adapter_file):
    with pytest.raises(InputError) as caught:
        read(path)
    [problem] = caught.value.problems
    return str(problem)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_one_format(name, tmp_path):
    found = read_adapter_file(put(tmp_path / "lora", name=name))
    assert (found.path.name, found.config, found.notes) == (name, CONFIG, ())


def test_of_two_formats_safetensors_is_read_and_told(tmp_path):
    put(tmp_path / "lora", name="adapter_model.bin", value=2.0)
    found = read_adapter_file(put(tmp_path / "lora"))
    assert found.path.name == "adapter_model.safetensors"
    assert found.notes == (
        "lora: read adapter_model.safetensors, as PEFT does, and not adapter_model.bin",
    )


def test_adapters_in_sub_folders_are_listed(tmp_path):
    for name in ("french", "german"):
        put(tmp_path / name)
    told = refusal(tmp_path)
    assert "holds 2 adapters in sub-folders: french, german" in told
    assert f"name the one that is meant, for example {tmp_path / 'german'}" in told
    assert read_adapter_file(tmp_path / "french").path.parent.name == "french"


def test_checkpoints_of_a_training_are_listed_in_their_order(tmp_path):
    for step in (1000, 90, 500):
        folder = put(tmp_path / f"checkpoint-{step}")
        torch.save({"state": torch.ones(1)}, folder / "optimizer.pt")
    assert "checkpoint-90, checkpoint-500, checkpoint-1000" in refusal(tmp_path)
    assert "checkpoint-1000" in refusal(tmp_path).partition("->")[2]
    assert read_adapter_file(tmp_path / "checkpoint-90").config == CONFIG


def test_the_only_one_in_a_sub_folder_is_read_and_told(tmp_path):
    put(tmp_path / "run" / "style")
    (tmp_path / "run" / "README.md").touch()
    found = read_adapter_file(tmp_path / "run")
    assert found.path.parent.name == "style"
    assert found.notes == ("run: its only adapter lies in style",)


def test_a_folder_s_own_adapter_is_read_and_the_others_are_told(tmp_path):
    put(tmp_path / "lora")
    put(tmp_path / "lora" / "checkpoint-10")
    assert read_adapter_file(tmp_path / "lora").notes == ()
    put(tmp_path / "lora" / "second")
    [note] = read_adapter_file(tmp_path / "lora").notes
    assert note == "lora: took its own adapter, and not second"


def test_a_configuration_without_weights(tmp_path):
    folder = put(tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    told = refusal(folder)
    assert "adapter_config.json is there, but neither adapter_model.safetensors nor" in told
    assert "it holds: adapter_config.json" in told
    put(folder / "checkpoint-10")
    assert f"did you mean {folder / 'checkpoint-10'}?" in refusal(folder)
    assert "adapter_config.json is there" in refusal(folder, inspect)


def test_weights_that_were_not_fetched(tmp_path, monkeypatch):
    folder = put(tmp_path / "lora")
    (folder / "adapter_model.safetensors").write_text(POINTER)
    assert "git lfs pull" in refusal(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to("gone")
    assert "a symbolic link that leads nowhere" in refusal(folder)
    snapshot = tmp_path / "models--org--lora" / "snapshots" / ("0" * 40)
    put(snapshot)
    (snapshot / "adapter_model.safetensors").unlink()
    assert "hf download org/lora" in refusal(snapshot)


def test_peft_weights_without_their_configuration(tmp_path):
    told = refusal(put(tmp_path / "lora", config=None))
    assert "a PEFT adapter without its adapter_config.json: alpha" in told
    assert str(tmp_path / "lora") in told.partition("->")[2]
    assert "without its adapter_config.json" in refusal(
        tmp_path / "lora" / "adapter_model.safetensors"
    )


BROKEN = {
    "twice": ('{"r": 8, "r": 16}', "1 duplicate keys in the JSON: 'r'"),
    "twice inside": ('{"rank_pattern": {"a": 1, "a": 2}}', "1 duplicate keys"),
    "no number": ('{"lora_alpha": NaN}', "lora_alpha is no finite number"),
    "too large": ('{"alpha_pattern": {"a": [1e999]}}', "alpha_pattern.a[0] is no finite number"),
    "cut short": ('{"r": 8', "broken JSON"),
    "a list": ("[8]", "not an object"),
    "a pointer": (POINTER, "git lfs pull"),
    "empty": ("", "broken JSON"),
    "deep": ("[" * 100_000, "broken JSON"),
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_configuration_is_read_strictly(text, expected, tmp_path):
    folder = put(tmp_path / "lora")
    (folder / "adapter_config.json").write_text(text)
    told = refusal(folder)
    assert expected in told
    assert "adapter_config.json" in told


def test_a_base_beside_adapters_is_still_inspected(tmp_path):
    put(tmp_path / "checkpoint-1")
    put(tmp_path / "checkpoint-2")
    (tmp_path / "config.json").write_text("{}")
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert inspect(tmp_path).facts["found"]["kind"] == "checkpoint"
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    assert "holds 2 adapters" in refusal(tmp_path, inspect)
