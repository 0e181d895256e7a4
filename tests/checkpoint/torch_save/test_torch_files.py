"""Archives and old files of torch.save, whole, rewritten, cut and damaged."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from lora_export.checkpoint.tensors import read_tensor
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.errors import InputError, LimitError

if TYPE_CHECKING:
    import pathlib

WHOLE = torch.arange(24.0).reshape(4, 6)
formats = pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"]
)


def save(value: object, path: pathlib.Path, **options: object) -> pathlib.Path:
    torch.save(value, path, **options)
    return path


def rewrite(path: pathlib.Path, change) -> pathlib.Path:
    """The archive again, each entry as `change(name, content)` gives it: None, bytes, method."""
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            changed = change(name.partition("/")[2], old.read(name))
            if changed is not None:
                content, method = changed
                new.writestr(name, content, compress_type=method)
    return target


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ARCHIVES = {
    "byte order": (
        lambda name, data: (b"big" if name == "byteorder" else data, STORED),
        "byte order is b'big'",
    ),
    "storage compressed": (
        lambda name, data: (data, DEFLATED if name == "data/0" else STORED),
        "'x/data/0' is compressed",
    ),
    "pickle compressed": (
        lambda name, data: (data, DEFLATED if name == "data.pkl" else STORED),
        "'x/data.pkl' is compressed",
    ),
    "storage missing": (
        lambda name, data: None if name == "data/0" else (data, STORED),
        "no entry 'x/data/0'",
    ),
    "storage short": (
        lambda name, data: (data[:-1] if name == "data/0" else data, STORED),
        "storage of 95 bytes, not 96",
    ),
    "no pickle": (
        lambda name, data: None if name == "data.pkl" else (data, STORED),
        "none of torch.save",
    ),
}


@pytest.mark.parametrize(("change", "expected"), ARCHIVES.values(), ids=ARCHIVES)
def test_refuses_archives_that_torch_does_not_write(tmp_path, change, expected):
    path = rewrite(save({"a": WHOLE}, tmp_path / "x.pt"), change)
    with pytest.raises(InputError) as caught:
        read_pickles(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def archive(path: pathlib.Path, value: float, **extra: bytes) -> bytes:
    save({"a": torch.full((3,), value)}, path)
    with zipfile.ZipFile(path, "a") as opened:
        for name, content in extra.items():
            opened.writestr(f"{path.stem}/{name.replace('_', '/')}", content)
    return path.read_bytes()


def moved_directory(content: bytes) -> bytes:
    """Bytes before the directory: Python's reader moves every offset by them, torch's none."""
    at = content.rindex(b"PK\x05\x06")
    offset = struct.unpack_from("<I", content, at + 16)[0]
    return content[:offset] + bytes(7) + content[offset:]


def test_archives_that_two_readers_read_differently_are_refused(tmp_path):
    one, other = archive(tmp_path / "x.pt", 1), archive(tmp_path / "x.pt", 2)
    rewritten = rewrite(tmp_path / "x.pt", lambda _name, data: (data, STORED)).read_bytes()
    cases = {
        "two archives": (one + other, "two archives in one file"),
        "bytes before": (b"PK\x03\x04" + one, "two archives in one file"),
        "directory moved": (moved_directory(rewritten), "two archives in one file"),
        "case": (archive(tmp_path / "x.pt", 1, DATA_0=bytes(12)), "upper and lower case"),
        "two pickles": (archive(tmp_path / "x.pt", 1, **{"b_data.pkl": b""}), "none of torch.save"),
    }
    for content, expected in cases.values():
        (tmp_path / "case.pt").write_bytes(content)
        with pytest.raises(InputError, match=expected):
            read_pickles(tmp_path / "case.pt")


def test_bytes_behind_an_archive_change_nothing(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(archive(path, 3) + bytes(9))
    (ref,) = read_pickles(path).tensors
    assert torch.equal(read_tensor(ref), torch.load(path, weights_only=True)["a"])


def test_archives_rewritten_by_zip_are_read_at_their_true_offsets(tmp_path):
    path = rewrite(save({"a": WHOLE}, tmp_path / "x.pt"), lambda _name, data: (data, STORED))
    (ref,) = read_pickles(path).tensors
    assert torch.equal(read_tensor(ref), WHOLE)


def test_a_storage_that_nothing_chosen_needs_may_be_damaged(tmp_path):
    state = {"model": {"a": WHOLE}, "optimizer": {"b": torch.ones(2)}}
    path = rewrite(
        save(state, tmp_path / "x.pt"),
        lambda name, data: None if name == "data/1" else (data, STORED),
    )
    (ref,) = read_pickles(path).tensors
    assert torch.equal(read_tensor(ref), WHOLE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(InputError, match="TorchScript program"):
        read_pickles(tmp_path / "x.pt")


@formats
def test_a_file_cut_anywhere_is_refused(tmp_path, options):
    whole = save({"a": WHOLE, "b": torch.ones(300)}, tmp_path / "x.pt", **options).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(4, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_pickles(path)


@formats
def test_a_damaged_file_is_read_or_refused_but_never_crashes(tmp_path, options):
    whole = bytearray(save({"a": WHOLE, "b": WHOLE[1]}, tmp_path / "x.pt", **options).read_bytes())
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged.pt"
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            refs = read_pickles(path).tensors
        except (InputError, LimitError):
            continue
        assert all(ref.offset + ref.length <= len(damaged) for ref in refs)
