"""VeRA's projection, which the merge draws by torch and the proof by numpy."""

from dataclasses import replace

import pytest
import torch
from kind_rows import Row

from lora_export.layers import vera as merge
from lora_export.verification.kinds import vera as proof


@pytest.mark.parametrize("held", ["", "BF16", "F16"])
@pytest.mark.parametrize("seed", [0, 1, 12345, (1 << 32) - 1, (1 << 32) + 5, (1 << 64) - 1])
def test_numpy_draws_the_projection_that_torch_draws(seed, held):
    shapes = {"lambda_b": (24,), "lambda_d": (3,)}
    delta = Row(lambda _: shapes, (24, 40), "", {"rule": "1"}).delta("vera", 3)
    delta = replace(delta, projection=(seed, 300, 50), held=held)
    ones = {role: torch.ones(shape, dtype=torch.float64) for role, shape in shapes.items()}
    drawn = proof.PROOF.complete(delta, ones)
    prepared = merge.KIND.prepare(delta, ones)
    assert torch.equal(prepared["A"], drawn["A"][:, :40])
    assert torch.equal(prepared["B"], drawn["B"][:24])
