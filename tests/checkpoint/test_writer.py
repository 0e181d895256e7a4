from __future__ import annotations

import errno
import hashlib
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_export.checkpoint.header import read_header
from lora_export.checkpoint.tensors import tensor_bytes
from lora_export.checkpoint.writer import ShardWriter, copy_file, write_bytes
from lora_export.errors import InputError, LoraExportError, StorageError
from lora_export.records import TensorSpec

SPECS = [
    TensorSpec("a", "F32", (2, 3)),
    TensorSpec("none", "F32", (0,)),
    TensorSpec("b", "BF16", ()),
]
A, B = torch.arange(6.0).reshape(2, 3), torch.tensor(2.0, dtype=torch.bfloat16)


def test_streams_a_file_that_the_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    with ShardWriter(path, SPECS, {"format": "pt"}, name="sub/x.safetensors") as writer:
        writer.write("a", tensor_bytes(A))
        writer.write("none", b"")
        writer.write_parts("b", [bytes(tensor_bytes(B))[:1], bytes(tensor_bytes(B))[1:]])
    read = load_file(path)
    assert torch.equal(read["a"], A)
    assert torch.equal(read["b"], B)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    content = path.read_bytes()
    assert writer.written is not None
    assert writer.written.path == "sub/x.safetensors"
    assert writer.written.size == len(content)
    assert writer.written.sha256 == hashlib.sha256(content).hexdigest()


def test_copies_refs_and_the_same_input_gives_the_same_bytes(tmp_path):
    save_file({"a": A, "b": B, "none": torch.empty(0)}, tmp_path / "in.safetensors")
    _, refs = read_header(tmp_path / "in.safetensors")
    digests = set()
    for name in ("one", "two"):
        with ShardWriter(tmp_path / name, [ref.spec for ref in refs], {}) as writer:
            for ref in refs:
                writer.copy(ref)
        digests.add(writer.written.sha256)
    assert len(digests) == 1
    assert torch.equal(load_file(tmp_path / "one")["a"], A)


def test_a_copy_may_bear_another_name(tmp_path):
    save_file({"a": A}, tmp_path / "in.safetensors")
    (ref,) = read_header(tmp_path / "in.safetensors")[1]
    with ShardWriter(tmp_path / "out", [TensorSpec("z", "F32", (2, 3))], {}) as writer:
        writer.copy(ref, "z")
    assert list(load_file(tmp_path / "out")) == ["z"]


MISUSE = {
    "order": ([("none", b"")], "'none' is written where 'a' is due"),
    "short": ([("a", bytes(23))], "'a' is written short"),
    "long": ([("a", bytes(25))], "'a' is written long"),
    "missing": ([("a", bytes(24))], "'none' was never written"),
    "too many": (
        [("a", bytes(24)), ("none", b""), ("b", bytes(2)), ("b", bytes(2))],
        "'b' is written where nothing is due",
    ),
}


def write_all(writer: ShardWriter, writes: list[tuple[str, bytes]]) -> None:
    with writer:
        for name, content in writes:
            writer.write(name, content)


@pytest.mark.parametrize(("writes", "expected"), MISUSE.values(), ids=MISUSE)
def test_a_file_not_written_as_specified_has_no_digest(tmp_path, writes, expected):
    writer = ShardWriter(tmp_path / "x", SPECS, {})
    with pytest.raises(LoraExportError, match=expected):
        write_all(writer, writes)
    assert writer.written is None


def test_an_exception_in_the_block_leaves_no_digest_and_comes_through(tmp_path):
    def write_and_fail() -> None:
        with writer:
            writer.write("a", bytes(24))
            raise ZeroDivisionError

    writer = ShardWriter(tmp_path / "x", SPECS[:1], {})
    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert writer.written is None
    with pytest.raises(LoraExportError, match="outside"):
        writer.write("a", bytes(24))


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="cannot create"):
        write_bytes(path, b"new")
    with pytest.raises(StorageError), ShardWriter(path, [], {}):
        pass
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_told_with_the_bytes_needed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / "x", bytes(12_345))
    assert "No space left" in str(caught.value)
    assert "12,345 bytes are needed" in str(caught.value)
    assert str(tmp_path / "x") in str(caught.value)


def test_copy_file_copies_bytes_not_rights(tmp_path):
    source = tmp_path / "in"
    source.write_bytes(os.urandom(9_000_000))
    source.chmod(0o400)
    written = copy_file(source, tmp_path / "out", name="sub/out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert (tmp_path / "out").stat().st_mode & 0o200
    assert written.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (written.path, written.size) == ("sub/out", 9_000_000)
    with pytest.raises(InputError, match="no such file"):
        copy_file(tmp_path / "none", tmp_path / "out2")
