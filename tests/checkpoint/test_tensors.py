from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lora_export.checkpoint.header import read_header
from lora_export.checkpoint.tensors import (
    TORCH_NAMES,
    iter_chunks,
    read_bytes,
    read_tensor,
    tensor_bytes,
    torch_dtype,
)
from lora_export.errors import InputError
from lora_export.records import TensorRef, TensorSpec


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    width = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, width), generator=generator)
    return raw.to(torch.uint8).view(dtype).reshape(shape)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and bytes(tensor_bytes(left)) == bytes(tensor_bytes(right))
    )


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_every_dtype_is_read_as_the_library_wrote_it(tmp_path, name):
    dtype = torch_dtype(name)
    tensors = {
        "matrix": random_tensor(dtype, 3, 5),
        "scalar": random_tensor(dtype),
        "empty": random_tensor(dtype, 0, 4),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    for ref in read_header(path)[1]:
        read = read_tensor(ref)
        assert same_bits(read, tensors[ref.spec.name])
        assert read_bytes(ref) == bytes(tensor_bytes(read))
        assert b"".join(map(bytes, iter_chunks(ref, 7))) == read_bytes(ref)


@pytest.mark.parametrize("name", ["F4", "F6_E2M3", "X"])
def test_dtypes_that_torch_lacks_are_refused(name):
    with pytest.raises(InputError, match="cannot hold elements"):
        torch_dtype(name)


LAYOUTS = {
    "transposed": (lambda t: t.t()),
    "sliced": (lambda t: t[1:3, 2:4]),
    "every second": (lambda t: t[::2, ::2]),
    "expanded": (lambda t: t[:1].expand(4, 6)),
    "column": (lambda t: t[:, 1]),
    "one element of a step": (lambda t: t[1, 2::4]),
}


@pytest.mark.parametrize("view", LAYOUTS.values(), ids=LAYOUTS)
def test_strides_are_honoured(tmp_path, view):
    whole = torch.arange(24.0).reshape(4, 6)
    part = view(whole)
    path = tmp_path / "raw"
    path.write_bytes(tensor_bytes(whole))
    start = part.storage_offset() * 4
    spec = TensorSpec("x", "F32", tuple(part.shape))
    ref = TensorRef(spec, path, start, 96 - start, part.stride())
    assert same_bits(read_tensor(ref), part)
    assert read_tensor(ref).is_contiguous()
    assert b"".join(map(bytes, iter_chunks(ref, 5))) == bytes(tensor_bytes(part))


def test_a_file_that_became_shorter_is_refused(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(bytes(10))
    ref = TensorRef(TensorSpec("x", "F32", (4,)), path, 0, 16)
    for read in (read_tensor, read_bytes, lambda ref: list(iter_chunks(ref))):
        with pytest.raises(InputError, match="'x': the file ends before the 16 bytes"):
            read(ref)


def test_a_dense_tensor_is_not_copied_for_writing():
    tensor = torch.zeros(3)
    view = tensor_bytes(tensor)
    tensor[0] = 1
    assert view[3] == 0x3F


def test_conjugated_and_negated_views_are_written_with_their_values():
    tensor = torch.tensor([1 + 2j])
    assert bytes(tensor_bytes(tensor.conj())) == bytes(tensor_bytes(torch.tensor([1 - 2j])))
    parameter = torch.nn.Parameter(torch.ones(2))
    assert len(tensor_bytes(parameter)) == 8
