"""A cast model is what torch makes of it, and its old weights do not stay beside the new ones."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from lora_export.models.network.casting import to_float32, to_float64

# Weights of 16 MB, as most are: below 32 MB the C library keeps what is freed, once it has seen
# one of that size come and go.
CHILD = """
import re
from pathlib import Path
import torch
from lora_export.models.network.casting import to_float32, to_float64

def now(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

torch.ones(7 << 20)[:1].clone()
model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(16)))
weights = sum(weight.nbytes for weight in model.parameters())
before = now("VmRSS")
to_float64(model)
print((now("VmHWM") - before) / weights)
to_float32(model)
print((now("VmRSS") - before) / weights)
"""


class Shared(nn.Module):
    """A tied weight, one that its parent owns, complex and whole numbers, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.inner = nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5))
        self.inner[0].weight = self.table.weight
        self.own = nn.Parameter(torch.ones(3))
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.register_buffer("scale", torch.ones(2), persistent=False)


def dtypes(model):
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name: tensor.dtype for name, tensor in tensors}


def test_every_tensor_has_the_type_and_the_tie_that_torch_gives_it():
    model, expected = Shared(), Shared()
    assert to_float64(model) is model
    assert dtypes(model) == dtypes(expected.double())
    assert model.own.dtype == torch.float64
    assert model.turn.dtype == torch.complex64
    assert model.inner[0].weight is model.table.weight
    assert dtypes(to_float32(model)) == dtypes(expected.float())


def test_a_cast_there_and_back_changes_no_bit():
    model = Shared()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = to_float32(to_float64(model)).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_old_weights_do_not_stay_in_memory():
    """Wide weights are the narrow ones once more; one piece of both may lie beside."""
    run = [sys.executable, "-c", CHILD]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    most_more, left = map(float, done.stdout.split())
    assert 0.9 < most_more < 1.3
    assert left < 0.2
