from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_export.checkpoint.header import encode_header, read_header
from lora_export.errors import InputError
from lora_export.records import DTYPE_BITS, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

names = st.text(min_size=1, max_size=12).filter(
    lambda n: "\0" not in n and ".." not in n and n != "__metadata__"
)
utf8 = st.text(st.characters(codec="utf-8"), max_size=12)
# A last dimension of 8 ends every dtype at a byte.
specs = st.lists(
    st.builds(
        lambda name, dtype, shape: TensorSpec(name, dtype, (*shape, 8)),
        names.filter(lambda n: n.isprintable() or n.isascii()),
        st.sampled_from(sorted(DTYPE_BITS)),
        st.lists(st.integers(0, 3), max_size=3),
    ),
    max_size=6,
    unique_by=lambda spec: spec.name,
)
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def entry(dtype="U8", shape=(2,), offsets=(0, 2), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def safetensors_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert all(str(path) in problem.where for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


WHOLE_FILE = {
    "empty file": (b"", "cut short"),
    "seven bytes": (b"1234567", "cut short"),
    "length 0": (bytes(8), "header of 0 bytes"),
    "length overflows": (b"\xff" * 16, "not a safetensors file"),
    "length past the end": ((100).to_bytes(8, "little") + b"{}", "cut short"),
    "length over the limit": ((10**8 + 1).to_bytes(8, "little") + b"{}", "not a safetensors"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html>", "not a safetensors file"),
}


@pytest.mark.parametrize(("content", "expected"), WHOLE_FILE.values(), ids=WHOLE_FILE)
def test_refuses_what_is_no_safetensors_file(tmp_path, content, expected):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    (fault,) = faults(path)
    assert expected in fault


JSON = {
    "leading space": (b" {}", "does not begin with '{'"),
    "an array": (b"[]", "does not begin with '{'"),
    "not UTF-8": (b'{"\xff": 1}', "broken JSON"),
    "cut": (b'{"a": ', "broken JSON"),
    "nested too deep": (b'{"a":' + b"[" * 100_000, "broken JSON"),
    "a number too long": (b'{"a":' + b"9" * 5000 + b"}", "broken JSON"),
    "duplicate name": (b'{"a": 1, "a": 2}', "duplicate keys in the JSON: 'a'"),
    "duplicate inside": (b'{"a": {"dtype": 1, "dtype": 2}}', "'dtype'"),
}


@pytest.mark.parametrize(("text", "expected"), JSON.values(), ids=JSON)
def test_refuses_broken_json(tmp_path, text, expected):
    (fault,) = faults(safetensors_file(tmp_path / "x.safetensors", text))
    assert expected in fault


ENTRIES = {
    "empty name": ({"": entry()}, b"12", "empty tensor name"),
    "NUL": ({"a\0b": entry()}, b"12", "NUL"),
    "a long number": ({"h." + "9" * 640: entry()}, b"12", "a number of at least 640 digits"),
    "too many parts": ({"a." * 64 + "a": entry()}, b"12", "a tensor name of 65 parts; at most 64"),
    "path upwards": ({"../a": entry()}, b"12", "like a path"),
    "path upwards, Windows": ({"a\\..\\b": entry()}, b"12", "like a path"),
    "half a character": ({"\ud800": entry()}, b"12", "not valid Unicode"),
    "unknown dtype": ({"a": entry("F13")}, b"12", "unknown dtype 'F13'"),
    "dtype no string": ({"a": entry(["U8"])}, b"12", "unknown dtype"),
    "key missing": ({"a": {"dtype": "U8"}}, b"12", "not hold dtype, shape and data_offsets"),
    "key too many": ({"a": entry(x=1)}, b"12", "not hold dtype, shape and data_offsets"),
    "no object": ({"a": 3}, b"", "not hold dtype, shape and data_offsets"),
    "negative size": ({"a": entry(shape=(-1, -2))}, b"12", "not a list of sizes"),
    "size a bool": ({"a": entry(shape=(True, 2))}, b"12", "not a list of sizes"),
    "size a float": ({"a": entry(shape=(2.0,))}, b"12", "not a list of sizes"),
    "shape no list": ({"a": {**entry(), "shape": 2}}, b"12", "not a list of sizes"),
    "shape overflows": ({"a": entry(shape=(2**40, 2**40, 0))}, b"12", "overflows"),
    "size over 64 bits": ({"a": entry(shape=(2**64,))}, b"12", "not a list of sizes"),
    "three offsets": ({"a": entry(offsets=(0, 1, 2))}, b"12", "not two positions"),
    "backwards": ({"a": entry(offsets=(2, 0))}, b"12", "takes 2 bytes"),
    "size mismatch": ({"a": entry("F32")}, b"12", "F32 [2] takes 8 bytes, but 2 are given"),
    "half a byte": ({"a": entry("F4", (3,), (0, 2))}, b"12", "do not end at a byte"),
    "overlap": ({"a": entry(), "b": entry(offsets=(1, 3))}, b"123", "'b': overlaps"),
    "same bytes twice": ({"a": entry(), "b": entry()}, b"12", "'b': overlaps"),
    "hole at the start": ({"a": entry(offsets=(1, 3))}, b"123", "hole of 1 bytes"),
    "hole": ({"a": entry(), "b": entry(offsets=(3, 5))}, b"12345", "'b': a hole of 1 bytes"),
    "trailing bytes": ({"a": entry()}, b"123", "1 bytes after the last tensor"),
    "cut short": ({"a": entry()}, b"1", "its tensors end at byte"),
    "metadata no object": ({"__metadata__": []}, b"", "__metadata__: not a JSON object"),
    "metadata number": ({"__metadata__": {"k": 1}}, b"", "value of 'k' is not a string"),
}


@pytest.mark.parametrize(("header", "data", "expected"), ENTRIES.values(), ids=ENTRIES)
def test_refuses_a_bad_entry(tmp_path, header, data, expected):
    assert expected in "\n".join(faults(safetensors_file(tmp_path / "x", header, data)))


def test_tells_all_problems_of_a_file_at_once(tmp_path):
    header = {"a": entry("X"), "": entry(), "c": entry("F64"), "__metadata__": {"k": 1}}
    assert len(faults(safetensors_file(tmp_path / "x", header, b"12"))) == 4


def test_missing_file_folder_and_pipe_are_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, expected in [
        (tmp_path / "none", "no such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
    ]:
        assert expected in faults(path)[0]


def test_null_metadata_is_none_as_the_library_has_it(tmp_path):
    path = safetensors_file(tmp_path / "x", {"__metadata__": None, "a": entry()}, b"12")
    assert read_header(path)[0] == {}
    assert safetensors.deserialize(path.read_bytes())


@quick
@given(specs, st.dictionaries(utf8, utf8, max_size=3))
def test_what_is_encoded_is_read_back_and_read_alike_by_the_library(tmp_path, specs, metadata):
    path = tmp_path / "x.safetensors"
    header = encode_header(specs, metadata)
    path.write_bytes(header + os.urandom(sum(spec.nbytes for spec in specs)))
    read_metadata, refs = read_header(path)
    assert read_metadata == metadata
    assert {ref.spec for ref in refs} == set(specs)
    assert [ref.spec for ref in refs if ref.length] == [s for s in specs if s.nbytes]
    assert len(header) % 8 == 0
    content = path.read_bytes()
    theirs = dict(safetensors.deserialize(content))
    assert theirs.keys() == {ref.spec.name for ref in refs}
    for ref in refs:
        info = theirs[ref.spec.name]
        assert (info["dtype"], tuple(info["shape"])) == (ref.spec.dtype, ref.spec.shape)
        assert bytes(info["data"]) == content[ref.offset : ref.offset + ref.length]


@quick
@given(specs, st.data())
def test_a_mutated_file_is_refused_or_the_library_takes_it_too(tmp_path, specs, data):
    content = bytearray(encode_header(specs, {"format": "pt"}))
    content += bytes(sum(spec.nbytes for spec in specs))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        content = content or bytearray(b"x")
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        _, refs = read_header(path)
    except InputError:
        return
    assert {name for name, _ in safetensors.deserialize(bytes(content))} == {
        ref.spec.name for ref in refs
    }


BAD_SPECS = {
    "duplicate": [TensorSpec("a", "F32", ()), TensorSpec("a", "F32", ())],
    "reserved": [TensorSpec("__metadata__", "F32", ())],
    "empty name": [TensorSpec("", "F32", ())],
    "dtype": [TensorSpec("a", "float32", ())],
    "negative": [TensorSpec("a", "F32", (-1,))],
    "half a byte": [TensorSpec("a", "F4", (3,))],
    "overflow": [TensorSpec("a", "F32", (2**62, 4))],
}


@pytest.mark.parametrize("specs", BAD_SPECS.values(), ids=BAD_SPECS)
def test_encodes_nothing_that_no_reader_takes(specs):
    with pytest.raises(InputError):
        encode_header(specs, {})


def test_metadata_stands_first_and_the_bytes_are_a_function_of_the_arguments():
    one = encode_header([TensorSpec("a", "F32", ())], {"k": "ü"})
    assert one[8:].startswith('{"__metadata__":{"k":"ü"}'.encode())
    assert one == encode_header([TensorSpec("a", "F32", ())], {"k": "ü"})
