from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from whole_run.steps import count_steps

from lora_export.checkpoint.header import encode_header
from lora_export.checkpoint.index import read_adapter_file, read_checkpoint
from lora_export.checkpoint.tensors import read_tensor
from lora_export.errors import InputError
from lora_export.records import TensorSpec

ONE, TWO = torch.ones(2, 2), torch.zeros(3)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": ONE, "b": TWO}, folder / "model-00001-of-00002.safetensors")
    save_file({"c": ONE}, folder / "model-00002-of-00002.safetensors")
    write_index(folder, {"a": 1, "b": 1, "c": 2})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def write_index(folder: Path, homes: dict[str, object], **more: object) -> Path:
    names = {
        name: f"model-0000{home}-of-00002.safetensors" if isinstance(home, int) else home
        for name, home in homes.items()
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": names, **more}))
    return path


def refusal(path: Path, read=read_checkpoint) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(path)
    # Not as printed: a long place, such as that of a test's folder, would lose its middle.
    return [f"{one.where}: {one.message}; {one.hint}" for one in caught.value.problems]


def test_a_sharded_folder_and_its_index_are_the_same_checkpoint(sharded):
    by_folder = read_checkpoint(sharded)
    assert by_folder == read_checkpoint(sharded / "model.safetensors.index.json")
    assert list(by_folder.tensors()) == ["a", "b", "c"]
    assert (by_folder.root, by_folder.layout) == (sharded, "folder")
    assert by_folder.index_name == "model.safetensors.index.json"
    assert by_folder.index_metadata == {"total_size": 44}
    assert by_folder.config == {"model_type": "bert"}
    assert [file.name for file in by_folder.side_files] == ["config.json"]
    assert torch.equal(read_tensor(by_folder.tensors()["a"]), ONE)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.bin", "misnamed.txt"])
def test_a_file_is_known_by_its_content(tmp_path, name):
    for save in (lambda p: save_file({"a": ONE}, p), lambda p: torch.save({"a": ONE}, p)):
        save(tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        assert (found.root, found.layout) == (tmp_path / name, "file")
        assert torch.equal(read_tensor(found.tensors()["a"]), ONE)
        assert (found.side_files, found.config, found.index_name) == ((), {}, None)


FOLDERS = {
    "model.safetensors": ({"model.safetensors": 1, "pytorch_model.bin": 2, "x.safetensors": 3}, 1),
    "pytorch_model.bin": ({"pytorch_model.bin": 1, "x.pt": 2}, 1),
    "one safetensors": ({"weights.safetensors": 1, "x.bin": 2}, 1),
    "beside an adapter": ({"model.safetensors": 1, "adapter_model.safetensors": 2}, 1),
}


@pytest.mark.parametrize(("files", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_which_file_of_a_folder_is_the_model(tmp_path, files, expected):
    for name, value in files.items():
        state = {"a": torch.tensor(value)}
        save = save_file if name.endswith("safetensors") else torch.save
        save(state, tmp_path / name)
    found = read_checkpoint(tmp_path)
    assert read_tensor(found.tensors()["a"]).item() == expected
    assert found.layout == "folder"


def test_a_folder_of_pickle_shards(tmp_path):
    torch.save({"a": ONE}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": TWO}, tmp_path / "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert list(read_checkpoint(tmp_path).tensors()) == ["a", "b"]


DISAGREEMENTS = {
    "entry not in its shard": ({"a": 1, "b": 1, "c": 2, "d": 2}, "'d' is not in model-00002"),
    "tensor not in the map": (
        {"a": 1, "c": 2},
        "'b' lies in model-00001-of-00002.safetensors, but",
    ),
    "in another shard": ({"a": 1, "b": 2, "c": 2}, "it lies in model-00001-of-00002.safetensors"),
    "shard missing": ({"a": 1, "b": 1, "c": 2, "d": 3}, "00003-of-00002.safetensors: no such file"),
    "path up": ({"a": "../x.safetensors"}, "not a plain file name: '../x.safetensors'"),
    "absolute": ({"a": "/etc/passwd"}, "not a plain file name"),
    "sub-folder": ({"a": "sub/x"}, "not a plain file name"),
    "Windows path": ({"a": "..\\x"}, "not a plain file name"),
    "NUL": ({"a": "x\0y"}, "not a plain file name"),
    "dots": ({"a": ".."}, "not a plain file name"),
    "no string": ({"a": None}, "not a plain file name: None"),
    "empty": ({}, "the index has no weight_map object"),
}


@pytest.mark.parametrize(("homes", "expected"), DISAGREEMENTS.values(), ids=DISAGREEMENTS)
def test_index_and_shards_must_agree_both_ways(sharded, homes, expected):
    write_index(sharded, homes)
    assert expected in "\n".join(refusal(sharded))


def test_a_tensor_in_two_shards_is_refused(sharded):
    save_file({"c": ONE, "a": TWO}, sharded / "model-00002-of-00002.safetensors")
    assert "'a' lies in two shards" in "\n".join(refusal(sharded))


def test_all_problems_of_all_shards_are_told_at_once(sharded):
    for shard in sharded.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1])
    assert len(refusal(sharded)) == 2
    write_index(sharded, {"a": "../x", "b": ""})
    assert len(refusal(sharded)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"weight_map": {"a": "x", "a": "y"}}', "duplicate keys"),
        ("{", "broken JSON"),
        ("[]", "not an object"),
        ('{"weight_map": [1]}', "the index has no weight_map object"),
        ('{"metadata": 1, "weight_map": {"a": "x"}}', "the index has no weight_map object"),
    ],
)
def test_a_broken_index_is_refused(sharded, text, expected):
    index = sharded / "model.safetensors.index.json"
    index.write_text(text)
    (fault,) = refusal(sharded)
    assert expected in fault
    assert str(index) in fault


def test_a_broken_config_is_refused(sharded):
    (sharded / "config.json").write_text("{'a': 1}")
    assert "config.json: broken JSON" in refusal(sharded)[0]


def test_lfs_pointers_are_named_wherever_they_stand(sharded):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for name in ["model-00001-of-00002.safetensors", "config.json"]:
        shutil.copy(sharded / name, sharded.parent / "kept")
        (sharded / name).write_text(pointer)
        assert "git lfs pull" in refusal(sharded)[0]
        shutil.copy(sharded.parent / "kept", sharded / name)
    (sharded / "x.bin").write_text(pointer)
    assert "git lfs pull" in refusal(sharded / "x.bin")[0]


def test_a_folder_without_a_model_says_what_it_holds(tmp_path):
    assert "it holds: nothing" in refusal(tmp_path)[0]
    (tmp_path / "notes.txt").touch()
    assert "it holds: notes.txt" in refusal(tmp_path)[0]
    save_file({"a": ONE}, tmp_path / "adapter_model.safetensors")
    assert "holds an adapter, not a base model" in refusal(tmp_path)[0]
    (tmp_path / "adapter_model.safetensors").unlink()
    for name in ("a", "b"):
        save_file({"a": ONE}, tmp_path / f"{name}.safetensors")
    assert "it holds: a.safetensors, b.safetensors" in refusal(tmp_path)[0]


def test_a_missing_path_is_told_with_a_near_name(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (fault,) = refusal(tmp_path / "modle.safetensors")
    assert f"did you mean {tmp_path / 'model.safetensors'}?" in fault
    assert "no such file or folder" in refusal(tmp_path / "a" / "b")[0]


def test_other_files_are_refused_as_no_weights(tmp_path):
    path = tmp_path / "x.bin"
    for content, expected in [
        (b"", "cut short"),
        (b"hello", "an unknown format"),
        (b"GGUF" + bytes(50), "a GGUF file"),
        (b"\x89HDF\r\n" + bytes(50), "an HDF5 file"),
        (b"<!DOCTYPE html><html>", "an unknown format: neither a safetensors file nor one of"),
    ]:
        path.write_bytes(content)
        (fault,) = refusal(path)
        assert expected in fault
        assert str(path) in fault


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_file({"a": ONE}, repository / "blobs" / "1234")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    (repository / "blobs" / "5678").write_text('{"model_type": "bert"}')
    (snapshot / "config.json").symlink_to("../../blobs/5678")
    return tmp_path


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HF_HUB_CACHE", "hub"), ("HUGGINGFACE_HUB_CACHE", "hub"), ("HF_HOME", ".")],
)
def test_a_cached_repository_is_found(cache, monkeypatch, variable, value):
    monkeypatch.setenv(variable, str(cache / value))
    found = read_checkpoint(Path("org/name"))
    assert list(found.tensors()) == ["a"]
    assert found.root.name == "0" * 40
    assert [file.name for file in found.side_files] == ["config.json"]
    assert list(read_adapter_file(Path("org/name")).tensors) == ["a"]


def test_the_default_cache_is_in_the_home_folder(cache, monkeypatch):
    monkeypatch.setenv("HOME", str(cache))
    (cache / ".cache" / "huggingface").mkdir(parents=True)
    (cache / "hub").rename(cache / ".cache" / "huggingface" / "hub")
    assert list(read_checkpoint(Path("org/name")).tensors()) == ["a"]


@pytest.mark.parametrize("name", ["org/other", "../hub", "org/..", "org/name/more", "org"])
def test_what_is_not_cached_is_missing(cache, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    shutil.rmtree(cache / "hub" / "models--org--name" / "snapshots")
    with pytest.raises(InputError):
        read_checkpoint(Path(name))
    if name == "org/other":
        assert "hf download org/other" in refusal(Path(name))[0]


def test_a_missing_weight_file_is_no_repository(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    assert "hf download" not in refusal(Path("folder/lora.safetensors"))[0]


def test_a_reference_that_is_no_revision_is_not_followed(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    (cache / "hub" / "models--org--name" / "refs" / "main").write_text("../../elsewhere")
    assert "not in the local Hugging Face cache" in refusal(Path("org/name"))[0]


def test_an_adapter_file_with_its_config(tmp_path):
    torch.save({"state_dict": {"a.lora_A": ONE}, "epoch": 1}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        found = read_adapter_file(path)
        assert list(found.tensors) == ["a.lora_A"]
        assert (found.path, found.config) == (tmp_path / "adapter_model.bin", {"r": 8})
        assert found.wrapper == "state_dict"


def test_metadata_of_an_adapter_is_kept(tmp_path):
    save_file({"a": ONE}, tmp_path / "x.safetensors", metadata={"alpha": "16"})
    found = read_adapter_file(tmp_path)
    assert (found.metadata, found.config, found.wrapper) == ({"alpha": "16"}, {}, "")


def test_which_file_of_an_adapter_folder(tmp_path):
    torch.save({"a": ONE}, tmp_path / "optimizer.pt")
    torch.save({"a": ONE}, tmp_path / "training_args.bin")
    assert "holds no weight file" in refusal(tmp_path, read_adapter_file)[0]
    torch.save({"a": ONE}, tmp_path / "lora.pt")
    assert read_adapter_file(tmp_path).path.name == "lora.pt"
    torch.save({"a": ONE}, tmp_path / "other.pt")
    assert "holds several weight files" in refusal(tmp_path, read_adapter_file)[0]
    torch.save({"a": ONE}, tmp_path / "adapter_model.bin")
    assert read_adapter_file(tmp_path).path.name == "adapter_model.bin"
    save_file({"a": ONE}, tmp_path / "adapter_model.safetensors")
    assert read_adapter_file(tmp_path).path.name == "adapter_model.safetensors"


def in_shards(folder, shards):
    """Write a checkpoint of 50 tensors a shard."""
    folder.mkdir()
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard:05d}.safetensors"
        specs = [TensorSpec(f"layer.{shard}.{n}.weight", "BF16", (1,)) for n in range(50)]
        (folder / name).write_bytes(encode_header(specs, {}) + bytes(100))
        weight_map |= dict.fromkeys((spec.name for spec in specs), name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_hundred_thousand_tensors_are_read_in_steps_that_grow_as_their_number(tmp_path):
    assert len(read_checkpoint(in_shards(tmp_path / "large", 2000)).tensors()) == 100_000
    folders = [in_shards(tmp_path / f"{shards}", shards) for shards in (20, 40)]
    fewer, more = (count_steps(lambda one=one: read_checkpoint(one).tensors()) for one in folders)
    assert more < 2.1 * fewer
