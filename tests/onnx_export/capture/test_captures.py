from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from lora_export.models.hf import huggingface
from lora_export.onnx_export.capture import captures, trace
from lora_export.onnx_export.capture.captures import (
    Captures,
    capture_key,
    default_folder,
    open_captures,
)
from lora_export.verification.model import branches

IDENTITY = {"class": "a.B", "config": {"layers": 2}, "apart": []}


@pytest.fixture
def graph(zoo):
    return zoo.captured("net").graph()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "captures"


def keys(zoo, **other):
    given = {"opset": None, "dtype": "float32", "untied": (), **other}
    return capture_key(given.pop("identity", IDENTITY), given.pop("inputs", zoo.specs("bert")),
                       **given)  # fmt: skip


def test_what_is_kept_is_found_again(graph, folder):
    cache, key = Captures(folder), "ab" * 32
    assert cache.take(key) is None
    assert cache.keep(key, graph) == ""
    assert cache.take(key) == graph
    assert cache.take("cd" * 32) is None
    assert [path.name for path in folder.iterdir()] == [f"{key}.capture"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_key_covers_all_that_decides_a_graph(zoo, monkeypatch):
    specs = zoo.specs("bert")
    first = keys(zoo)
    assert first == keys(zoo, identity=dict(reversed(IDENTITY.items())))
    others = [
        keys(zoo, identity={**IDENTITY, "config": {"layers": 3}}),
        keys(zoo, identity={**IDENTITY, "class": "a.C"}),
        keys(zoo, identity={**IDENTITY, "apart": ["x"]}),
        keys(zoo, inputs=specs[:1]),
        keys(zoo, inputs=specs[::-1]),
        keys(zoo, inputs=(replace(specs[0], dims=("batch", 7)), *specs[1:])),
        keys(zoo, opset=20),
        keys(zoo, dtype="float16"),
        keys(zoo, untied=("lm_head.weight",)),
    ]
    for library in captures.LIBRARIES:
        with monkeypatch.context() as patch:
            right = captures._version
            patch.setattr(
                captures, "_version", lambda n, x=library, r=right: "0" if n == x else r(n)
            )
            others.append(keys(zoo))
    with monkeypatch.context() as patch:
        patch.setattr(captures, "_own_code", lambda: "other code")
        others.append(keys(zoo))
    for code in (trace, huggingface, branches):
        with monkeypatch.context() as patch:
            files = [file for file in captures._own_files() if file != Path(code.__file__)]
            patch.setattr(captures, "_own_files", lambda files=files: files)
            others.append(keys(zoo))
    assert len({first, *others}) == 1 + len(others)


def truncated(content):
    return content[:-1]


def bit_flipped(content):
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


def of_another_version(content):
    return content.replace(b"capture 1", b"capture 2", 1)


def empty(content):
    return b""


def only_a_head(content):
    return content[: len(captures._head("0" * 64, b""))]


def of_another_key(content):
    """A whole entry, under a name that is not its own."""
    payload = captures._split(content)[1]
    return captures._head("cd" * 32, payload) + payload


def no_graph(content):
    payload = b"\xff\xff\xff"
    return captures._head("ab" * 32, payload) + payload


def no_bindings(content):
    return captures._head("ab" * 32, b"") + b""


@pytest.mark.parametrize("damage", [truncated, bit_flipped, of_another_version, empty, only_a_head,
                                    of_another_key, no_graph, no_bindings])  # fmt: skip
def test_a_damaged_entry_is_none_and_is_replaced(graph, folder, damage):
    cache, key = Captures(folder), "ab" * 32
    cache.keep(key, graph)
    path = folder / f"{key}.capture"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.take(key) is None
    assert cache.keep(key, graph) == ""
    assert cache.take(key) == graph


def test_an_entry_that_is_no_file_is_none(graph, folder):
    key = "ab" * 32
    (folder / f"{key}.capture").mkdir(parents=True)
    assert Captures(folder).take(key) is None
    assert "could not be kept" in Captures(folder).keep(key, graph)
    assert [path.name for path in folder.iterdir()] == [f"{key}.capture"]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(graph, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    said = Captures(file / "captures").keep("ab" * 32, graph)
    assert said.startswith("the captured graph could not be kept in ")
    assert "\n" not in said
    assert Captures(file / "captures").take("ab" * 32) is None


def test_the_entries_that_were_not_used_for_longest_go(graph, folder, monkeypatch):
    monkeypatch.setattr(captures, "ENTRIES", 3)
    cache, names = Captures(folder), [f"{number:064}" for number in range(5)]
    for age, name in enumerate(names[:4]):
        cache.keep(name, graph)
        os.utime(folder / f"{name}.capture", (1000 + age, 1000 + age))
        if age == 2:
            cache.take(names[0])  # used: the youngest now
    (folder / "killed.part").write_bytes(b"x")
    os.utime(folder / "killed.part", (1, 1))
    (folder / "running.part").write_bytes(b"x")
    (folder / "notes.txt").write_text("mine")
    cache.keep(names[4], graph)
    left = {path.name.removesuffix(".capture") for path in folder.iterdir()}
    assert left == {names[0], names[3], names[4], "running.part", "notes.txt"}


def test_counts_lie_beside_their_graph_and_go_with_it(graph, folder, monkeypatch):
    monkeypatch.setattr(captures, "ENTRIES", 1)
    cache, key, what = Captures(folder), "ab" * 32, "12" * 32
    beside, made = cache.beside(key), []

    def count():
        made.append(1)
        return [3, 0, 7]

    assert beside.counts(what, 3, count) == [3, 0, 7]
    assert not folder.exists()  # without its graph, no count is kept
    cache.keep(key, graph)
    os.utime(folder / f"{key}.capture", (1, 1))
    assert [beside.counts(what, 3, count) for _ in range(2)] == [[3, 0, 7]] * 2
    assert len(made) == 2
    assert beside.counts("34" * 32, 1, lambda: [1]) == [1]
    assert beside.counts(what, 3, count) == [3, 0, 7]
    assert cache.beside("cd" * 32).counts(what, 1, lambda: [2]) == [2]
    assert len(made) == 2
    [path] = folder.glob(f"*{what}*")
    for damaged in (b"", path.read_bytes()[:-1], path.read_bytes().replace(b"7", b"8")):
        path.write_bytes(damaged)
        assert beside.counts(what, 3, count) == [3, 0, 7]
    assert len(made) == 5
    cache.keep("cd" * 32, graph)
    assert [path.name for path in folder.iterdir()] == [f"{'cd' * 32}.capture"]


@pytest.mark.parametrize(
    "payload",
    [
        b"[1, 2",
        b"[1]",
        b"[1, 2, 3]",
        b"{}",
        b'[1, "2"]',
        b"[true, 2]",
        b"[" * 9,
        b"[1, 2]" + b" " * 99,
    ],
    ids=repr,
)
def test_counts_of_another_form_are_counted_again(graph, folder, payload):
    cache, key, what = Captures(folder), "ab" * 32, "12" * 32
    cache.keep(key, graph)
    assert cache.beside(key).counts(what, 2, lambda: [1, 2]) == [1, 2]
    [path] = folder.glob("*.count")
    path.write_bytes(captures._head(what, payload) + payload)
    assert cache.beside(key).counts(what, 2, lambda: [3, 4]) == [3, 4]
    assert cache.beside(key).counts(what, 2, lambda: [5, 6]) == [3, 4]


def test_the_oldest_counts_of_a_graph_are_removed(graph, folder, monkeypatch):
    monkeypatch.setattr(captures, "COUNTS", 2)
    cache, key = Captures(folder), "ab" * 32
    cache.keep(key, graph)
    for place, what in enumerate(("12" * 32, "34" * 32, "56" * 32)):
        cache.beside(key).counts(what, 1, lambda: [1])
        os.utime(folder / f"{key}-{what}.count", (place, place))
    assert {path.stem[-2:] for path in folder.glob("*.count")} == {"34", "56"}


def test_where_the_captures_are(monkeypatch, tmp_path):
    monkeypatch.setenv(captures.VARIABLE, str(tmp_path / "named"))
    assert default_folder() == tmp_path / "named"
    monkeypatch.delenv(captures.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lora-export/captures"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home/.cache/lora-export/captures"
    assert open_captures("here", off=False) == Captures(Path("here"))
    assert open_captures("here", off=True) is None
    assert open_captures(None, off=False) == Captures(default_folder())
