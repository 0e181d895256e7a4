"""Arrays that declare a factory's inputs, as nothing else does; and what they cannot declare."""

import re

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import export_onnx
from lora_export.errors import InputError, UsageError
from lora_export.models.inputs.arrays import declared_by_arrays
from lora_export.records import InputSpec

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)

    def forward(self, left, ids):
        return self.first(left) + ids[:, :1]

def build():
    return Net()
"""


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_the_first_size_is_the_batch_where_all_agree(tmp_path):
    path = write(tmp_path / "a.npz", left=np.zeros((3, 6), np.float32), ids=np.zeros((3, 4), int))
    left, ids = declared_by_arrays(path)
    assert left == InputSpec("left", "float32", ("batch", 6))
    assert ids == InputSpec("ids", "int64", ("batch", 4))


@pytest.mark.parametrize("other", [np.zeros((2, 4)), np.float64(1.0)])
def test_nothing_is_dynamic_where_they_do_not(tmp_path, other):
    path = write(tmp_path / "a.npz", left=np.zeros((3, 6)), other=other)
    assert [spec.dims for spec in declared_by_arrays(path)] == [(3, 6), other.shape]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({}, "holds no array"),
        ({"x": np.zeros(3, np.complex64)}, "dtype complex64, which no graph takes"),
        ({"a b": np.zeros(3)}, "no name that an input can have"),
        ({"x": np.zeros((0, 3))}, "holds no element"),
    ],
)
def test_what_no_graph_takes_is_refused(tmp_path, arrays, match):
    with pytest.raises(InputError, match=re.escape(match)):
        declared_by_arrays(write(tmp_path / "a.npz", **arrays))


@pytest.fixture
def factory(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(SOURCE)
    save_file({"first.weight": torch.randn(6, 6)}, tmp_path / "base.safetensors")
    factors = {"first.lora_A": torch.randn(2, 6), "first.lora_B": torch.randn(6, 2)}
    save_file(factors, tmp_path / "lora.safetensors")
    return tmp_path


def export(folder, **proof):
    return export_onnx(
        folder / "base.safetensors",
        [folder / "lora.safetensors"],
        folder / "out.onnx",
        model=f"{folder / 'net.py'}:build",
        alpha=3,
        fan_in_fan_out=False,
        **proof,
    )


def test_a_factory_whose_inputs_only_arrays_declare(factory):
    arrays = {"left": np.ones((2, 6), np.float32), "ids": np.ones((2, 3), np.float32)}
    report = export(factory, inputs=write(factory / "own.npz", **arrays))
    assert report.passed
    [told] = [line for line in report.warnings if "own.npz" in line]
    assert "left=float32[batch,6]" in told
    assert "the batch is dynamic" in told
    graph = onnx.load(factory / "out.onnx").graph
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in graph.input] == [
        "batch", "batch",
    ]  # fmt: skip


def test_a_factory_of_which_nothing_is_declared(factory):
    with pytest.raises(UsageError, match="inputs are not declared") as caught:
        export(factory)
    assert "--inputs FILE.npz" in caught.value.problems[0].hint
