"""The screen's one product: what it adds, and the norm that it takes without making the update."""

import pytest
import torch
from safetensors.torch import save_file

from lora_export.planning.request import make_request, plan_request
from lora_export.verification.expected import FORMULAS, needed_for
from lora_export.verification.merged_rows import Expectation

SHAPES = {
    "linear": ((96, 40), ((4, 40), (96, 4)), {"fan_in_fan_out": False}),
    "turned": ((40, 96), ((4, 40), (96, 4)), {"fan_in_fan_out": True}),
    "embedding": ((96, 40), ((4, 96), (40, 4)), {}),
}


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -0.3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_is_the_sum_of_the_updates(shape, weights, tmp_path):
    torch.manual_seed(0)
    size, factors, settings = SHAPES[shape]
    base = {f"{shape}.weight": torch.randn(size).bfloat16()}
    if shape != "embedding":
        base[f"{shape}.bias"] = torch.randn(96).bfloat16()
    save_file(base, tmp_path / "base.safetensors")
    paths = [tmp_path / f"{number}.safetensors" for number in range(len(weights))]
    for path in paths:
        read = zip("AB", factors, strict=True)
        save_file({f"{shape}.lora_{role}": torch.randn(sizes) for role, sizes in read}, path)
    options = {"alpha": 6.0, "weight": weights, **settings}
    plan = plan_request(make_request(tmp_path / "base.safetensors", paths, options))
    [step] = [step for step in plan.steps() if step.deltas]
    assert {delta.kind for delta in step.deltas} == {shape.replace("turned", "linear")}
    expectation = Expectation(step, plan.recipe)
    rows = torch.arange(7, 31)
    update = sum(
        FORMULAS[delta.kind](delta, *needed_for(delta, wide, rows)) * scale
        for delta, wide, scale in zip(
            expectation._deltas, expectation._wide, expectation._scales, strict=True
        )
    )
    start = torch.randn(len(rows), size[1])
    found = start.clone()
    norm = expectation._add_update(found, rows)
    torch.testing.assert_close(found, (start + update).float(), rtol=1e-5, atol=1e-4)
    assert norm == pytest.approx(float(update.square().sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_looked_at_is_left_alone(dtype, tmp_path):
    """It is hashed afterwards; and what is computed in place may be a view of float64."""
    torch.manual_seed(0)
    base = {"fc.weight": torch.randn(96, 40).to(dtype)}
    save_file(base, tmp_path / "base.safetensors")
    factors = {"fc.lora_A": torch.randn(4, 40), "fc.lora_B": torch.randn(96, 4)}
    save_file(factors, tmp_path / "lora.safetensors")
    files = tmp_path / "base.safetensors", [tmp_path / "lora.safetensors"]
    plan = plan_request(make_request(*files, {"alpha": 6.0}))
    [step] = plan.steps()
    wrong = base["fc.weight"] + 1  # so that every row is looked at more closely
    seen = base["fc.weight"].clone(), wrong.clone()
    [found] = Expectation(step, plan.recipe).look(0, *seen)
    assert found.error > 1
    assert torch.equal(seen[0], base["fc.weight"])
    assert torch.equal(seen[1], wrong)
