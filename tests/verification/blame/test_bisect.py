"""The first module that diverges, in pairs of small torch models."""

from __future__ import annotations

import copy
from math import inf

import numpy as np
import pytest
import torch
from torch import nn

from lora_export.verification.blame.bisect import _nearest, compare_models
from lora_export.verification.blame.gap import first_diverging


class Twice(nn.Module):
    """One layer that is called two times, as ALBERT's is, and one that is called once."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        return {"y": self.last(self.shared(torch.relu(self.shared(self.first(x)))))}


def built():
    torch.manual_seed(0)
    return Twice().eval().requires_grad_(requires_grad=False)


def no_more(_):
    """No other forms than float64, which is always taken."""
    return ()


PROBE = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)}


@pytest.mark.parametrize("budget", [1, 200, 1 << 20])
@pytest.mark.parametrize("module", ["first", "shared", "last.0"])
def test_the_module_is_named_whatever_is_held_at_once(module, budget):
    right, wrong = built(), built()
    wrong.get_submodule(module).weight[2] *= 1.01
    gaps = compare_models(
        lambda: copy.deepcopy(right), no_more, lambda: wrong, PROBE, budget=budget
    )
    assert [gap.module for gap in gaps] == ["first", "shared", "shared", "last.0", "last.1",
                                            "last", ""]  # fmt: skip
    found = first_diverging(gaps)
    assert found.module == module
    assert found.inputs < 1e-6 < found.outputs


def test_equal_models_have_no_culprit():
    right = built()
    gaps = compare_models(lambda: copy.deepcopy(right), no_more, built, PROBE)
    assert max(gap.outputs for gap in gaps) == 0.0
    assert first_diverging(gaps) is None


def test_a_nan_is_a_fault():
    right, wrong = built(), built()
    wrong.shared.bias[0] = float("nan")
    gaps = compare_models(lambda: copy.deepcopy(right), no_more, lambda: wrong, PROBE)
    assert first_diverging(gaps).module == "shared"
    assert first_diverging(gaps).outputs == inf


def test_what_enters_may_have_another_shape():
    """Two reshapes in a row are one in the graph."""
    values = {"flat": np.arange(6, dtype=np.float32), "ids": np.arange(6)}
    wanted = (np.arange(6, dtype=np.float32).reshape(2, 3) + 0.5,)
    assert _nearest(["flat", "ids"], values, wanted) == ([0.0], [])
    assert _nearest(["flat", "ids"], values, wanted, reshaped=True) == ([0.5], ["flat"])
