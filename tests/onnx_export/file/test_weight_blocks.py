"""Weights block by block: the same bytes as the whole weight, in every order and dtype."""

import numpy as np
import pytest
import torch

from lora_export.onnx_export.file import weight_blocks
from lora_export.onnx_export.file.weight_blocks import Cast, as_array, blocks, parts

SHAPES = [(), (0, 3), (7,), (5, 3), (1, 9), (3, 1, 4), (2, 5, 3)]


def test_as_array_keeps_the_bits_of_bfloat16():
    values = torch.tensor([1.5, -0.0, float("inf")], dtype=torch.bfloat16)
    assert as_array(values).tobytes() == values.view(torch.int16).numpy().tobytes()
    assert as_array(values).dtype.name == "bfloat16"


@pytest.mark.parametrize("most", [1, 2, 4, 7, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_hold_every_element_once_and_in_order(shape, most, monkeypatch):
    monkeypatch.setattr(weight_blocks, "BLOCK", most)
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    for whole in (array, torch.from_numpy(array)):
        found = list(parts(whole))
        assert all(np.prod(part.shape) <= max(most, 1) for part in found)
        joined = np.concatenate([np.asarray(part).reshape(-1) for part in found])
        assert joined.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_the_bytes_of_the_whole_cast_tensor(shape, wanted, dtype, monkeypatch):
    monkeypatch.setattr(weight_blocks, "BLOCK", 4)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    perm = tuple(reversed(range(len(shape))))
    cast = Cast(tensor, np.dtype(wanted))
    whole = tensor.to(getattr(torch, wanted)).permute(perm).contiguous().numpy()
    assert b"".join(map(bytes, blocks(cast, perm))) == whole.tobytes()
    assert as_array(cast).tobytes() == tensor.to(getattr(torch, wanted)).numpy().tobytes()
