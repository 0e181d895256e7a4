"""float16 models: rounded once, and refused where a weight does not fit."""

import numpy as np
import pytest
import torch
from torch import nn

from lora_export.errors import FitError
from lora_export.models.inputs import parse_inputs
from lora_export.onnx_export.half import HalfSource, rounded_once


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.register_buffer("inv_freq", torch.tensor([1e-7, 1.0]), persistent=False)
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))


class Source:
    inputs = parse_inputs(("x=float32[batch,4]", "ids=int64[batch]<3"))

    def __init__(self, **values):
        self.values = values

    def load(self, checkpoint, *, full, untied):
        model = Net()
        with torch.no_grad():
            for name, value in self.values.items():
                model.state_dict()[name.replace("_", ".", 1)].reshape(-1)[0] = value
        return model


def test_what_is_float32_becomes_float16():
    model = HalfSource(Source(proj_weight=1 / 3)).load(None, full={}, untied=())
    assert model.proj.weight.dtype is torch.float16
    assert model.proj.weight[0, 0] == torch.tensor(1 / 3).half()
    assert model.inv_freq.dtype is torch.float32
    assert model.mask[0] == -torch.inf
    assert [spec.dtype for spec in HalfSource(Source()).inputs] == ["float16", "int64"]


def test_weights_that_would_become_infinite_are_all_named():
    source = HalfSource(Source(proj_weight=1e5, proj_bias=-7e4))
    with pytest.raises(FitError) as caught:
        source.load(None, full={}, untied=())
    assert [problem.where for problem in caught.value.problems] == ["proj.weight", "proj.bias"]
    assert "1e+05" in str(caught.value)


def test_numpy_rounds_as_torch_does():
    torch.manual_seed(0)
    values = torch.randn(1000) * 10.0 ** torch.randint(-9, 4, (1000,))
    found = rounded_once({"w": values, "ids": torch.arange(3), "a.inv_freq": values})
    assert np.array_equal(found["w"], values.half().numpy())
    assert found["ids"].dtype == np.int64
    assert found["a.inv_freq"].dtype == np.float32
