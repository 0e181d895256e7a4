"""Other orders of summation show as much noise as a run in float64 does, and change no dtype."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lora_export.verification.model.compare import distance
from lora_export.verification.model.orders import Backwards, EachInFloat64
from lora_export.verification.model.runs import run, run_exact, run_otherwise


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Linear(64, 192)
        self.last = nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = self.parts(x).unflatten(-1, (4, 48)).transpose(1, 2).chunk(3, -1)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.last(found.transpose(1, 2).flatten(2))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(48, 48)

    def forward(self, x):
        turned = torch.fft.rfft(self.fc(x)) * torch.polar(torch.ones(25), torch.arange(25.0))
        return torch.fft.irfft(turned)


NETWORKS = {
    "linear": lambda: nn.Sequential(
        nn.Linear(48, 96), nn.GELU(), nn.LayerNorm(96), nn.Linear(96, 9)
    ),
    "convolution": lambda: nn.Sequential(
        nn.Conv1d(4, 24, 5), nn.SiLU(), nn.Conv1d(24, 24, 3, groups=24), nn.GroupNorm(4, 24),
        nn.ConvTranspose1d(24, 5, 3), nn.Softmax(-1),
    ),
    "attention": Attention,
    "complex": Complex,
}  # fmt: skip
SHAPES = {"convolution": (3, 4, 60), "attention": (3, 6, 64)}


def built(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval().requires_grad_(requires_grad=False)
    x = torch.randn(SHAPES.get(name, (3, 48)), generator=torch.Generator().manual_seed(1))
    taken = "input" if isinstance(model, nn.Sequential) else "x"
    return model, [{taken: x.numpy()}]


def apart(left, right):
    return max(distance(one, other).worst for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("name", ["linear", "attention", "complex", "convolution"])
def test_the_noise_is_of_the_size_that_float64_shows(name):
    model, probes = built(name)
    plain = run(model, probes)
    shown = apart(run(copy.deepcopy(model).double(), probes), plain)
    with EachInFloat64():
        exact = run(model, probes)
    others = run_otherwise(model, probes)
    noise = max(apart(one, plain) for one in (exact, *others))
    assert 0 < shown / 8 < noise < 8 * shown
    assert all(array.dtype == np.float32 for array in exact[0].values())
    assert apart(run(model, probes), plain) == 0  # the weights are what they were


def test_sums_are_turned_round():
    model, probes = built("linear")
    plain = run(model, probes)
    with Backwards():
        turned = run(model, probes)
    assert 0 < apart(turned, plain) < 1e-5


@pytest.mark.parametrize("mode", [EachInFloat64, Backwards])
def test_what_is_written_in_place_stays_as_it_is(mode):
    with mode():
        x = torch.arange(6, dtype=torch.float32).view(2, 3)
        view = x[0]
        view.add_(1)
        x[1] = 7
        taken = (x.to(torch.float64).dtype, x.argmax().dtype, (x > 2).dtype, x.half().dtype)
    assert x.tolist() == [[1, 2, 3], [7, 7, 7]]
    assert taken == (torch.float64, torch.int64, torch.bool, torch.float16)


def test_an_operator_that_has_no_float64_keeps_its_result():
    def only_float32(x):
        if x.dtype != torch.float32:
            raise RuntimeError("not implemented for 'Double'")
        return x + 1

    torch.library.define("lora_export_tests::plus_one", "(Tensor x) -> Tensor")
    torch.library.impl("lora_export_tests::plus_one", "cpu", only_float32)
    with EachInFloat64():
        found = torch.ops.lora_export_tests.plus_one(torch.ones(3))
    assert found.tolist() == [2, 2, 2]


def test_a_network_that_runs_in_float64_is_taken_there():
    model, probes = built("linear")
    outputs, why = run_exact(model, probes)
    assert (why, outputs[0]["output"].dtype) == ("", np.float64)


class Masked(torch.nn.Module):
    """An attention whose mask is the least number of the dtype, and whose softmax is float32."""

    def __init__(self, value):
        super().__init__()
        self.linear, self.value = torch.nn.Linear(3, 3), value

    def forward(self, x, mask):
        least = torch.finfo(x.dtype).min if self.value is None else self.value
        hidden = torch.where(mask.bool(), torch.zeros_like(x), torch.full_like(x, least))
        scores = torch.softmax(self.linear(x) + hidden, -1, dtype=torch.float32)
        return scores.to(x.dtype)


MASKED = {"x": np.ones((2, 3), np.float32), "mask": np.array([[1, 1, 0], [0, 0, 0]])}


def test_a_network_that_gives_nan_in_float64_alone_has_each_operator_in_float64():
    [outputs], why = run_exact(Masked(None).eval(), [MASKED])
    assert why == "it gives NaN in float64 alone"
    assert (outputs["output"].dtype, np.isnan(outputs["output"]).any()) == (np.float32, False)


def test_a_network_that_gives_nan_in_both_is_taken_in_float64():
    [outputs], why = run_exact(Masked(-np.inf).eval(), [MASKED])
    assert (why, outputs["output"].dtype) == ("", np.float64)
    assert np.isnan(outputs["output"]).tolist() == [[False] * 3, [True] * 3]
