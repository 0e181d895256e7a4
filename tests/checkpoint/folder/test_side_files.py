from __future__ import annotations

import os

import pytest
import torch

from lora_export.checkpoint.folder.side_files import list_side_files
from lora_export.errors import InputError

KEPT = [
    "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "README.md",
    "config.json", "modules.json", "tokenizer.json", "training_args.bin", "vocab.bin",
]  # fmt: skip
LEFT_OUT = [
    "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack",
    "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data_1",
    "openvino/openvino_model.xml", "model.Q4.gguf",
    "rust_model.ot", "model.ckpt", "consolidated.00.pth", "optimizer.pt", "other.bin",
    "original/consolidated.00.pth", ".git/config", ".gitattributes", "lora_export.json",
    "x.safetensors.lora_export.json", "adapter_config.json", "adapter_model.bin",
    "checkpoint-500/trainer_state.json",
]  # fmt: skip


def test_everything_but_weights_goes_along(tmp_path):
    for name in [*KEPT, *LEFT_OUT]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("plain text")
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    torch.save({"a": torch.ones(1)}, tmp_path / "other.bin")
    found = list_side_files(tmp_path)
    assert [file.name for file in found] == KEPT
    assert all(file.source == tmp_path / file.name for file in found)


def test_links_to_files_and_folders_are_followed(tmp_path):
    repository = tmp_path / "models--org--name"
    folder, blobs = repository / "snapshots" / "main", repository / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1234").write_text("{}")
    (folder / "config.json").symlink_to(blobs / "1234")
    (folder / "elsewhere").symlink_to(blobs)
    os.mkfifo(folder / "pipe")
    names = ["config.json", "elsewhere/1234"]
    assert [file.name for file in list_side_files(folder)] == names
    (folder / "vocab.txt").symlink_to(blobs / "none")
    with pytest.raises(InputError, match=r"vocab\.txt: a symbolic link that leads nowhere"):
        list_side_files(folder)


def test_a_linked_folder_may_not_lead_out_or_in_a_circle(tmp_path):
    folder, outside = tmp_path / "base", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (folder / "1_Pooling").symlink_to(outside)
    with pytest.raises(InputError, match="a link that leads out") as caught:
        list_side_files(folder)
    assert caught.value.problems[0].where == str(folder / "1_Pooling/config.json")
    (found,) = list_side_files(folder, follow_links=True)
    assert found.name == "1_Pooling/config.json"
    (folder / "self").symlink_to(".")
    with pytest.raises(InputError, match="a linked folder inside a linked folder") as caught:
        list_side_files(folder, follow_links=True)
    assert caught.value.problems[0].where == str(folder / "self/1_Pooling")


def test_the_depth_is_bounded(tmp_path):
    deep = tmp_path.joinpath(*"abcd")
    deep.mkdir(parents=True)
    (deep / "file").touch()
    assert [file.name for file in list_side_files(tmp_path)] == ["a/b/c/d/file"]
    (deep / "e").mkdir()
    with pytest.raises(InputError, match="nested deeper than 4"):
        list_side_files(tmp_path)


def test_a_broken_modules_json_is_refused(tmp_path):
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(InputError, match=r"modules\.json: broken JSON"):
        list_side_files(tmp_path)
