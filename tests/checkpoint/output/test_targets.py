from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_export.checkpoint.output.targets import check_output
from lora_export.errors import OutputError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "base" / "sub").mkdir(parents=True)
    (tmp_path / "base" / "model.safetensors").write_text("x")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "lora_export.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "base_link").symlink_to("base")
    (tmp_path / "hard").hardlink_to(tmp_path / "base" / "model.safetensors")
    header = b'{"__metadata__":{}}'
    (tmp_path / "weights").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "cut").write_bytes(len(header).to_bytes(8, "little") + header[:-1])
    (tmp_path / "graph").write_bytes(b"\x08\x0a\x12\x07pytorch")
    (tmp_path / "ours").write_text("x")
    (tmp_path / "ours.lora_export.json").write_text("{}")
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


ALLOWED = [
    ("new", "folder", False, ["base"]),
    ("new", "file", False, ["base", "file"]),
    ("new", "file", True, []),
    ("export", "folder", True, ["base"]),
    ("ours", "file", True, ["base"]),
    ("ours.lora_export.json", "file", True, []),
    ("weights", "file", True, []),
    ("graph", "file", True, []),
    ("base/out.safetensors", "file", False, ["base/model.safetensors"]),
    ("new", "file", False, ["missing"]),
]


@pytest.mark.parametrize(("output", "kind", "force", "inputs"), ALLOWED)
def test_allowed(place, output, kind, force, inputs):
    check_output(place / output, kind, force=force, inputs=[place / name for name in inputs])


REFUSED = [
    ("file", "file", False, [], "exists already"),
    ("export", "folder", False, [], "exists already"),
    ("dangling", "file", False, [], "exists already"),
    ("mine", "folder", True, [], "without lora_export.json"),
    ("file", "file", True, [], "no manifest beside it and is neither safetensors nor ONNX"),
    ("cut", "file", True, [], "no manifest beside it"),
    ("empty", "file", True, [], "no manifest beside it"),
    ("file", "folder", True, [], "is no folder"),
    ("export", "file", True, [], "is no regular file"),
    ("link", "file", True, [], "is no regular file"),
    ("pipe", "file", True, [], "is no regular file"),
    ("base_link", "folder", True, [], "is no folder"),
    ("none/new", "file", False, [], "none does not exist"),
    ("file/new", "file", False, [], "is not a folder"),
    ("file", "file", True, ["file"], "is the input"),
    ("file", "file", True, ["link"], "is the input"),
    ("hard", "file", True, ["base/model.safetensors"], "is the input"),
    ("hard", "file", True, ["base"], "is the input"),
    ("base/new", "folder", False, ["base"], "lies inside the input"),
    ("base/sub/new", "folder", False, ["base"], "lies inside the input"),
    ("base_link/new", "folder", False, ["base"], "lies inside the input"),
    ("base/new", "folder", False, ["base_link"], "lies inside the input"),
    ("export", "folder", True, ["export/lora_export.json"], "contains the input"),
    ("export", "folder", True, ["export"], "is the input"),
]


@pytest.mark.parametrize(("output", "kind", "force", "inputs", "expected"), REFUSED)
def test_refused(place, output, kind, force, inputs, expected):
    with pytest.raises(OutputError, match=expected) as caught:
        check_output(place / output, kind, force=force, inputs=[place / name for name in inputs])
    assert caught.value.problems[0].where == str(place / output)


@pytest.mark.parametrize("output", ["..", ".", "/"])
def test_refused_names(output, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="not the name of a file"):
        check_output(Path(output), "folder", force=True, inputs=())


def test_a_folder_that_may_not_be_written(place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        check_output(place / "new", "file", force=False, inputs=())


def test_files_beside_are_looked_at_too_and_everything_is_told_at_once(place):
    (place / "file.lora_export.json").write_text("{}")
    with pytest.raises(OutputError) as caught:
        check_output(
            place / "file",
            "file",
            force=False,
            inputs=[],
            beside=["file.lora_export.json"],
        )
    assert len(caught.value.problems) == 2


def test_an_input_is_told_once_and_not_offered_to_be_replaced(place):
    with pytest.raises(OutputError) as caught:
        check_output(
            place / "base",
            "folder",
            force=False,
            inputs=[place / "base", place / "base" / "model.safetensors"],
        )
    [problem] = caught.value.problems
    assert "--force" not in str(problem)


def test_a_folder_that_is_no_export_is_not_offered_to_be_replaced(place):
    (place / "hollow").mkdir()
    check_output(place / "hollow", "folder", force=False, inputs=[])
    (place / "hollow" / "notes").touch()
    with pytest.raises(OutputError) as caught:
        check_output(place / "hollow", "folder", force=False, inputs=[])
    assert "--force" not in str(caught.value)


LISTING = '{"outputs": [{"name": "new"}]}'


@pytest.mark.parametrize(
    ("output", "text", "allowed"),
    [
        ("new", LISTING, True),
        ("new", "{}", False),
        ("new", "mine", False),
        ("file", LISTING, False),
    ],
)
def test_a_manifest_that_a_kill_left_alone_is_no_reason(place, output, text, allowed):
    (place / f"{output}.lora_export.json").write_text(text)
    arguments = (place / output, "file")
    options = {"force": False, "inputs": [], "beside": [f"{output}.lora_export.json"]}
    if allowed:
        check_output(*arguments, **options)
    else:
        with pytest.raises(OutputError, match="exists already"):
            check_output(*arguments, **options)
