"""Folders as PEFT, the Trainer and the Hub leave them: one adapter is read, or one is asked for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import inspect
from lora_export.checkpoint.index import read_adapter_file, read_checkpoint
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
        "lora: read adapter_model.safetensors, as PEFT does, not adapter_model.bin",
    )


def test_adapters_in_sub_folders_are_listed(tmp_path):
    for name in ("french", "german"):
        put(tmp_path / name)
    told = refusal(tmp_path)
    assert "holds 2 adapters in sub-folders: french, german" in told
    assert f"give the path of one of them, for example {tmp_path / 'german'}" in told
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
    assert note == "lora: took its own adapter, not second"


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
    assert "a PEFT adapter without its adapter_config.json: the weights hold neither alpha" in told
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


@pytest.mark.parametrize("name", ["pytorch_model.bin", "lora.safetensors", "last.ckpt", "w.pth"])
def test_weights_of_another_name_beside_a_configuration(name, tmp_path):
    folder = put(tmp_path / "lora", name=name)
    torch.save({"state": torch.ones(1)}, folder / "optimizer.pt")
    found = read_adapter_file(folder)
    assert (found.path.name, found.config, found.beside) == (name, CONFIG, ())
    assert found.notes == (f"lora: {name} is read as the adapter's weights",)
    assert read_adapter_file(folder / name).tensors == found.tensors
    assert read_adapter_file(tmp_path).path == found.path


def test_of_several_names_the_only_one_with_factors(tmp_path):
    folder = put(tmp_path / "lora", name="lora.safetensors")
    save_file({"v_head.weight": torch.ones(2)}, folder / "head.safetensors")
    (folder / "odd.pt").write_bytes(b"PK\x03\x04")
    found = read_adapter_file(folder)
    assert found.path.name == "lora.safetensors"
    assert [one.name for one in found.beside] == ["head.safetensors", "odd.pt"]
    put(folder, name="second.bin")
    told = refusal(folder)
    assert "lies beside lora.safetensors, second.bin, each of which holds low-rank factors" in told
    assert f"give the path of the adapter's file, for example {folder / 'lora.safetensors'}" in told
    for one in ("lora.safetensors", "second.bin"):
        (folder / one).unlink()
    assert "lies beside head.safetensors, odd.pt, none of which holds factors" in refusal(folder)


def shard(folder: Path, suffix: str, index: str | None) -> Path:
    """Two tensors in two shards, as transformers splits what it saves."""
    put(folder, name=f"adapter_model-00001-of-00002{suffix}")
    save = save_file if suffix == ".safetensors" else torch.save
    save(
        {KEY.replace("_A", "_B"): torch.ones(2, 2)},
        folder / f"adapter_model-00002-of-00002{suffix}",
    )
    if index:
        homes = {KEY: 1, KEY.replace("_A", "_B"): 2}
        names = {key: f"adapter_model-0000{n}-of-00002{suffix}" for key, n in homes.items()}
        (folder / index).write_text(json.dumps({"weight_map": names}))
    return folder


SHARDED = [
    (".safetensors", "adapter_model.safetensors.index.json"),
    (".safetensors", "model.safetensors.index.json"),  # as transformers 5 calls it
    (".safetensors", None),
    (".bin", "adapter_model.bin.index.json"),
    (".bin", None),
]


@pytest.mark.parametrize(("suffix", "index"), SHARDED)
def test_an_adapter_in_shards(suffix, index, tmp_path):
    folder = shard(tmp_path / "lora", suffix, index)
    found = read_adapter_file(folder)
    assert sorted(found.tensors) == [KEY, KEY.replace("_A", "_B")]
    assert [path.name for path in found.files] == [
        f"adapter_model-0000{n}-of-00002{suffix}" for n in (1, 2)
    ]
    assert (found.config, found.beside) == (CONFIG, ())
    assert found.path == (folder / index if index else found.files[0])
    assert read_adapter_file(tmp_path).files == found.files
    told = refusal(found.files[1])
    assert "is shard 2 of 2, a part of the adapter" in told
    assert str(folder / index if index else folder) in told.partition("->")[2]
    found.files[0].unlink()
    assert "adapter_model-00001-of-00002" in refusal(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = shard(tmp_path / "lora", ".safetensors", None)
    put(folder, name="adapter_model-00002-of-00002.safetensors")
    assert "lies in two shards" in refusal(folder)


ZERO = "python zero_to_fp32.py . OUT"
MODULE = "python -m deepspeed.utils.zero_to_fp32 . OUT"
DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
FSDP = "accelerate merge-weights"
PIECES = {
    "zero": (["zero_to_fp32.py", "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt"], ZERO),
    "zero without its script": (["global_step5/bf16_zero_pp_rank_0_optim_states.pt"], MODULE),
    "dcp": ([".metadata", "__0_0.distcp"], DCP),
    "dcp below": (["model/.metadata", "model/__0_0.distcp"], DCP),
    "fsdp": (
        [
            f"{part}_0/{name}"
            for part in ("pytorch_model_fsdp", "optimizer")
            for name in (".metadata", "__0_0.distcp")
        ],
        FSDP,
    ),
}


@pytest.mark.parametrize("config", [CONFIG, None], ids=["adapter", "bare"])
@pytest.mark.parametrize(("files", "command"), PIECES.values(), ids=PIECES)
def test_a_checkpoint_in_pieces_names_the_command_that_joins_them(files, command, config, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"PK")
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert command in refusal(tmp_path).partition("->")[2]
    assert command in refusal(tmp_path, read_checkpoint).partition("->")[2]


def test_the_pieces_themselves_are_told_of_too(tmp_path):
    step = tmp_path / "global_step5"
    step.mkdir()
    (step / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"PK")
    (step / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"PK")
    for read in (read_adapter_file, read_checkpoint):
        assert f"cd {tmp_path} && {MODULE}" in refusal(step, read)


def test_a_folder_of_components_names_the_one_with_the_weights(tmp_path):
    for name in ("vae", "transformer", "scheduler"):
        (tmp_path / name).mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    for name in ("vae", "transformer"):
        save_file(
            {"a.weight": torch.ones(2)}, tmp_path / name / "diffusion_pytorch_model.safetensors"
        )
    for read in (read_adapter_file, read_checkpoint):
        told = refusal(tmp_path, read)
        assert "a diffusers pipeline: transformer, vae hold the weights" in told
        assert f"give {tmp_path / 'transformer'}" in told
    assert list(read_checkpoint(tmp_path / "transformer").tensors()) == ["a.weight"]


def test_a_sentence_transformers_folder_names_its_transformer(tmp_path):
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    listed = [{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    save_file({"a.weight": torch.ones(2)}, inner / "model.safetensors")
    told = refusal(tmp_path, read_checkpoint)
    assert f"0_Transformer holds the weights: give {inner}" in told


def test_a_base_in_shards_of_another_name(tmp_path):
    stem = "diffusion_pytorch_model"
    for n in (1, 2):
        save_file({f"w{n}": torch.ones(2)}, tmp_path / f"{stem}-0000{n}-of-00002.safetensors")
    assert "holds none of model.safetensors" in refusal(tmp_path, read_checkpoint)
    names = {f"w{n}": f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)}
    (tmp_path / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert list(read_checkpoint(tmp_path).tensors()) == ["w1", "w2"]
