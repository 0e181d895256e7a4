"""Files of torch.save made at random, read as torch.load(weights_only=True) reads them, or refused.

The seed is fixed. Whatever torch takes from a file and we read too must be equal to the byte.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch

from lora_export.checkpoint.tensors import read_tensor, tensor_bytes
from lora_export.checkpoint.torch_save.pickles import read_pickles
from lora_export.errors import InputError

if TYPE_CHECKING:
    import pathlib

FILES = 150
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn,
)  # fmt: skip
WRAPPERS = ("", "state_dict", "model", "module.net", "weights.params")
BESIDE = (3, 0.5, "text", True, None, [1, 2], {"a": {"b": 1}}, torch.Size([2]), {1, 2})


class Maker:
    """Makes state dicts; storages are shared between the tensors of one file."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.wholes: list[torch.Tensor] = []

    def whole(self) -> torch.Tensor:
        if self.wholes and self.random.random() < 0.4:
            return self.random.choice(self.wholes)
        shape = [self.random.randint(0 if self.random.random() < 0.1 else 1, 5) for _ in range(3)]
        whole = torch.arange(torch.Size(shape).numel()).reshape(shape) % 120
        whole = whole.to(self.random.choice(DTYPES))
        if whole.is_complex():
            whole = whole + 1j * whole
        self.wholes.append(whole)
        return whole

    def view(self, whole: torch.Tensor) -> torch.Tensor:
        dimension = self.random.randrange(3)
        changes = (
            lambda: whole,
            lambda: whole.transpose(0, dimension),
            lambda: whole[1:, :, ::2],
            lambda: whole.select(dimension, 0) if whole.shape[dimension] else whole,
            lambda: whole.unsqueeze(1).expand(-1, 3, -1, -1),
            lambda: whole.permute(2, 0, 1).reshape(-1)[:4],
            lambda: torch.nn.Parameter(whole, requires_grad=False),
            lambda: whole[:0],
            lambda: self.with_attribute(whole),
            lambda: whole.conj() if whole.is_complex() else whole,
            lambda: (
                torch.complex(whole.real, whole.imag).conj().imag if whole.is_complex() else whole
            ),
            lambda: torch._neg_view(whole) if whole.dtype == torch.float32 else whole,
        )
        return self.random.choice(changes)()

    def with_attribute(self, whole: torch.Tensor) -> torch.Tensor:
        parameter = torch.nn.Parameter(whole.detach(), requires_grad=False)
        parameter.note = "an attribute"
        return parameter

    def state(self) -> dict[str, object]:
        kind = self.random.choice((dict, OrderedDict, Counter))
        state = kind()
        for number in range(self.random.randint(1, 6)):
            state[f"layer.{number}.weight"] = self.view(self.whole())
        if self.random.random() < 0.5:
            state["beside"] = self.random.choice(BESIDE)
        if kind is OrderedDict:
            state._metadata = {"": {"version": 1}}
        return state

    def wrapped(self, wrapper: str) -> object:
        content: object = self.state()
        for key in reversed(wrapper.split(".")):
            content = {"epoch": 1, "rng": torch.get_rng_state(), key: content} if key else content
        return content


def down(content, wrapper):
    for key in filter(None, wrapper.split(".")):
        content = content[key]
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def has_bits(tensors):
    return any(tensor.is_neg() or tensor.is_conj() for tensor in tensors.values())


def compare(path: pathlib.Path, wrapper: str) -> bool:
    """Whether it was read; then it is equal. Only a bit that is set may be refused."""
    theirs = down(torch.load(path, weights_only=True, map_location="cpu"), wrapper)
    if has_bits(theirs):
        with pytest.raises(InputError, match="bit is set") as caught:
            read_pickles(path)
        assert all(".resolve_" in problem.hint for problem in caught.value.problems)
        return False
    found = read_pickles(path)
    assert found.wrapper == wrapper
    assert [ref.spec.name for ref in found.tensors] == list(theirs)
    for ref in found.tensors:
        ours, wanted = read_tensor(ref), theirs[ref.spec.name].detach()
        assert (ours.dtype, ours.shape) == (wanted.dtype, wanted.shape), ref
        assert bytes(tensor_bytes(ours)) == bytes(
            tensor_bytes(wanted.clone(memory_format=torch.contiguous_format))
        ), ref
    return True


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_honest_files_are_equal_to_what_torch_loads_or_refused(tmp_path, zipped):
    read = 0
    for seed in range(FILES):
        maker = Maker(seed)
        wrapper = maker.random.choice(WRAPPERS)
        content = maker.wrapped(wrapper)
        if not zipped and any(whole.dtype in DTYPES[-2:] for whole in maker.wholes):
            continue  # torch.load itself cannot read these dtypes in the old format
        path = tmp_path / "x.pt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        read += compare(path, wrapper)
    assert read > FILES // 4
