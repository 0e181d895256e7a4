"""A file in a folder of plug-ins takes part; what has another class or no plug-in does not."""

from __future__ import annotations

import importlib

from lora_export.plug_ins import find_plug_ins


def test_a_module_takes_part_by_its_member(tmp_path, monkeypatch):
    folder = tmp_path / "folder_of_plug_ins"
    folder.mkdir()
    for name, text in {"__init__": "", "one": "KIND = 1", "two": "KIND = '2'", "none": ""}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module(folder.name)
    assert list(find_plug_ins(package.__name__, package.__path__, "KIND", int)) == [1]
