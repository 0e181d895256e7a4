from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_export.checkpoint.side_files import edit_json, list_side_files
from lora_export.errors import InputError

KEPT = [
    "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "README.md",
    "config.json", "modules.json", "tokenizer.json", "training_args.bin", "vocab.bin",
]  # fmt: skip
LEFT_OUT = [
    "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack",
    "onnx/model.onnx", "onnx/model.onnx_data", "openvino/openvino_model.xml", "model.Q4.gguf",
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


def test_links_to_files_are_followed_and_nothing_else(tmp_path):
    folder, blobs = tmp_path / "model", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    (blobs / "1234").write_text("{}")
    (folder / "config.json").symlink_to(blobs / "1234")
    (folder / "elsewhere").symlink_to(blobs)
    os.mkfifo(folder / "pipe")
    assert [file.name for file in list_side_files(folder)] == ["config.json"]
    (folder / "vocab.txt").symlink_to(blobs / "none")
    with pytest.raises(InputError, match=r"vocab\.txt: a symbolic link that leads nowhere"):
        list_side_files(folder)


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


CONFIG = b'{\n  "b": 1e-05,\n  "tie": true,\n  "a": {"x":   [1,2]},\n  "n": "\\u00fc"\n}\n'
EDITS = {
    "change": (CONFIG, {"tie": False}, CONFIG.replace(b"true", b"false")),
    "change two": (
        CONFIG, {"a": 1, "b": 2},
        CONFIG.replace(b'{"x":   [1,2]}', b"1").replace(b"1e-05", b"2"),
    ),
    "add": (CONFIG, {"z": None}, CONFIG[:-3] + b',\n  "z": null\n}\n'),
    "add nested": (CONFIG, {"z": [1]}, CONFIG[:-3] + b',\n  "z": [\n    1\n  ]\n}\n'),
    "nothing": (CONFIG, {}, CONFIG),
    "one line": (b'{"a":1,"b":2}', {"b": [3, 4], "c": 5}, b'{"a":1,"b":[3, 4],"c":5}'),
    "empty": (b"{}", {"a": 1, "b": 2}, b'{\n  "a": 1,\n  "b": 2\n}'),
    "tabs": (b'{\n\t"a": 1\n}', {"b": {"c": 2}}, b'{\n\t"a": 1,\n\t"b": {\n\t\t"c": 2\n\t}\n}'),
    "Windows": (
        b'{\r\n  "a": 1\r\n}', {"b": [2]},
        b'{\r\n  "a": 1,\r\n  "b": [\r\n    2\r\n  ]\r\n}',
    ),
    "nested key of the same name": (
        b'{"x": {"tie": true}, "tie": true}', {"tie": False}, b'{"x": {"tie": true}, "tie": false}',
    ),
    "not ASCII": ('{"a": "ü"}'.encode(), {"a": "ö"}, '{"a": "ö"}'.encode()),
    "escapes": (b'{"\\"a\\\\": 1, "b": "}"}', {"b": 2}, b'{"\\"a\\\\": 1, "b": 2}'),
}  # fmt: skip


@pytest.mark.parametrize(("content", "edits", "expected"), EDITS.values(), ids=EDITS)
def test_only_the_edited_value_changes(content, edits, expected):
    assert edit_json(content, edits) == expected
    assert json.loads(expected) == {**json.loads(content), **edits}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=5)


@given(objects, objects, st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_an_edited_object_is_the_object_with_the_edits(before, edits, indent, ascii_only):
    content = json.dumps(before, indent=indent, ensure_ascii=ascii_only).encode(
        errors="surrogatepass"
    )
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    edited = json.loads(edit_json(content, edits))
    assert edited == {**before, **edits}
    assert list(edited) == list({**before, **edits})


WITHOUT = {
    "the first": (b'{\n  "a": 1,\n  "b": 2\n}', ["a"], b'{\n  "b": 2\n}'),
    "one between": (b'{"a": 1, "b": {"c": [2]}, "d": 3}', ["b"], b'{"a": 1, "d": 3}'),
    "the last": (b'{\n  "a": 1,\n  "b": "},"\n}\n', ["b"], b'{\n  "a": 1\n}\n'),
    "the only one": (b'{\n  "a": 1\n}', ["a"], b"{\n}"),
    "all": (b'{"a": 1, "b": 2}', ["b", "a"], b"{}"),
    "none": (b'{ "a": 1 }', ["x"], b'{ "a": 1 }'),
}


@pytest.mark.parametrize(("content", "names", "expected"), WITHOUT.values(), ids=WITHOUT)
def test_a_member_is_taken_out_and_nothing_else(content, names, expected):
    assert edit_json(content, {}, names) == expected
    left = {key: value for key, value in json.loads(content).items() if key not in names}
    assert json.loads(edit_json(content, {"z": 1}, names)) == {**left, "z": 1}


@given(objects, st.sampled_from([None, 0, 2, "\t"]), st.data())
def test_an_object_without_members_is_the_object_less_them(before, indent, data):
    names = data.draw(st.lists(st.sampled_from(sorted(before)), max_size=3)) if before else []
    content = json.dumps(before, indent=indent).encode()
    left = {key: value for key, value in before.items() if key not in names}
    assert json.loads(edit_json(content, {}, names)) == left


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b""])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(InputError):
        edit_json(content, {"a": 1})
