"""float16 weights: rounded once, and refused where they do not fit."""

import numpy as np
import pytest
import torch

from lora_export.errors import FitError
from lora_export.onnx_export.precision.half import refuse_too_large, rounded_once


def test_weights_that_would_become_infinite_are_all_named():
    weights = {
        "fits": torch.tensor([65504.0, -65504.0]),
        "high": torch.tensor([0.0, 1e5]),
        "low": torch.tensor([-7e4]),
        "mask": torch.tensor([-torch.inf, 0.0]),
        "ids": torch.tensor([10**6]),
    }
    with pytest.raises(FitError) as caught:
        refuse_too_large(weights)
    assert [problem.where for problem in caught.value.problems] == ["high", "low"]
    assert "1e+05" in str(caught.value)


def test_numpy_rounds_as_torch_does_and_only_what_is_float16():
    torch.manual_seed(0)
    values = torch.randn(1000) * 10.0 ** torch.randint(-9, 4, (1000,))
    full = {"w": values, "ids": torch.arange(3), "kept": values}
    half = {"w": values.half(), "ids": torch.arange(3), "kept": values}
    found = rounded_once(full, half)
    assert np.array_equal(found["w"], values.half().numpy())
    assert found["ids"].dtype == np.int64
    assert np.array_equal(found["kept"], values.numpy())
