"""float16 weights: refused where they do not fit."""

import pytest
import torch

from lora_export.errors import FitError
from lora_export.onnx_export.precision.half import refuse_too_large


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
