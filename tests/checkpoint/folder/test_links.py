"""Links that lead out of a folder: refused for every kind of file, but for a snapshot's blobs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from lora_export import merge, unmerge, verify
from lora_export.checkpoint.folder.links import leaving
from lora_export.checkpoint.index import read_adapter_file, read_checkpoint
from lora_export.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc1"]}
SHARDS = {f"model-0000{n}-of-00002.safetensors": f"fc{n}.weight" for n in (1, 2)}
PRIVATE = "the user's own words"


def put_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, tensor in SHARDS.items():
        save_file({tensor: torch.eye(4)}, folder / name)
    weight_map = {tensor: name for name, tensor in SHARDS.items()}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "notes").mkdir()
    (folder / "notes" / "read.txt").write_text("notes")
    return folder


def put_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    prefix = "base_model.model.fc1."
    factors = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(4, 2)}
    tensors = {f"{prefix}{name}": value for name, value in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def base(tmp_path):
    return put_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path):
    return put_adapter(tmp_path / "lora")


def move_out(path: Path, outside: Path) -> None:
    """Move a file to the folder `outside`, and leave a link to it."""
    shutil.move(path, outside / f"moved-{path.name}")
    path.symlink_to(outside / f"moved-{path.name}")


@pytest.mark.parametrize(
    "name", [*SHARDS, "model.safetensors.index.json", "config.json", "notes/read.txt"]
)
def test_a_file_of_a_base_that_is_a_link_out_of_it_is_refused(base, name, tmp_path):
    move_out(base / name, tmp_path)
    with pytest.raises(InputError) as caught:
        read_checkpoint(base)
    [problem] = caught.value.problems
    assert problem.message.startswith("a link that leads out of the folder, to ")
    assert problem.where == str(base / name)
    assert "--follow-links" in problem.hint
    assert len(read_checkpoint(base, follow_links=True).tensors()) == 2


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_of_an_adapter_that_is_a_link_out_of_it_is_refused(adapter, name, tmp_path):
    move_out(adapter / name, tmp_path)
    with pytest.raises(InputError, match="leads out of the folder"):
        read_adapter_file(adapter)
    assert len(read_adapter_file(adapter, follow_links=True).tensors) == 2


def test_a_private_file_beside_the_weights_is_in_no_result(base, adapter, tmp_path):
    (tmp_path / "private").write_text(PRIVATE)
    (base / "notes.txt").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match="leads out of the folder"):
        merge(base, [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(base, [adapter], tmp_path / "out", follow_links=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == PRIVATE
    assert not (tmp_path / "out" / "notes.txt").is_symlink()
    verify(tmp_path / "out", base=base, adapters=[adapter], follow_links=True)


def test_an_adapters_tokenizer_that_is_a_link_is_not_taken(base, adapter, tmp_path):
    move_out(adapter / "tokenizer.json", tmp_path)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        merge(base, [adapter], tmp_path / "out", tokenizer="adapter")
    merge(base, [adapter], tmp_path / "out", tokenizer="adapter", follow_links=True)


def test_what_unmerge_copies_lies_in_the_merged_folder(base, adapter, tmp_path):
    merge(base, [adapter], tmp_path / "merged", undo=tmp_path / "undo")
    move_out(tmp_path / "merged" / "notes" / "read.txt", tmp_path)
    with pytest.raises(InputError, match="leads out of the folder"):
        unmerge(tmp_path / "merged", tmp_path / "again", undo=tmp_path / "undo")
    unmerge(tmp_path / "merged", tmp_path / "again", undo=tmp_path / "undo", follow_links=True)


@pytest.mark.parametrize("name", [*SHARDS, "config.json"])
def test_links_inside_the_folder_are_read(base, name):
    (base / "kept").mkdir()
    (base / name).rename(base / "kept" / "file.dat")
    (base / name).symlink_to("kept/file.dat")
    assert len(read_checkpoint(base).tensors()) == 2


def test_the_folder_itself_and_a_named_file_may_be_links(base, adapter, tmp_path):
    (tmp_path / "linked").symlink_to(base)
    assert len(read_checkpoint(tmp_path / "linked").tensors()) == 2
    (tmp_path / "alone.safetensors").symlink_to(base / next(iter(SHARDS)))
    assert len(read_checkpoint(tmp_path / "alone.safetensors").tensors()) == 1
    (tmp_path / "factors").mkdir()
    named = tmp_path / "factors" / "lora.safetensors"
    named.symlink_to(adapter / "adapter_model.safetensors")
    shutil.copy(adapter / "adapter_config.json", tmp_path / "factors")
    assert len(read_adapter_file(named).tensors) == 2


@pytest.fixture(params=[put_base, put_adapter], ids=["base", "adapter"])
def snapshot(request, tmp_path):
    """Return a cached snapshot: links into the blobs of its repository."""
    made = request.param(tmp_path / "made")
    repository = tmp_path / "hub" / "models--org--name"
    folder = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in made.rglob("*") if path.is_file()):
        blob = repository / "blobs" / str(number)
        shutil.move(path, blob)
        place = folder / path.relative_to(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        depth = len(place.relative_to(repository).parts) - 1
        place.symlink_to("../" * depth + f"blobs/{number}")
    return folder


def read(folder: Path) -> int:
    is_adapter = (folder / "adapter_config.json").exists()
    found = read_adapter_file(folder) if is_adapter else read_checkpoint(folder)
    return len(found.tensors) if is_adapter else len(found.tensors())


def test_a_snapshot_of_the_cache_is_read(snapshot, tmp_path):
    assert read(snapshot) == 2
    (tmp_path / "mine").symlink_to(snapshot)
    assert read(tmp_path / "mine") == 2


def test_a_snapshot_reads_the_blobs_of_no_other_repository(snapshot, tmp_path):
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "others")
    blobs.symlink_to(tmp_path / "others")
    with pytest.raises(InputError, match="leads out of the folder"):
        read(snapshot)


def test_a_name_that_climbs_out_is_no_different_from_a_link(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "basement").write_text("")
    (tmp_path / "base" / "inside").write_text("")
    paths = [tmp_path / "base" / name for name in ("inside", "../basement", "sub/../inside")]
    assert [p.where for p in leaving(tmp_path / "base", paths)] == [str(paths[1])]
