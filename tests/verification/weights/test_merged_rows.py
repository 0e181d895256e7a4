"""The screen's one product: what it adds, and the norm that it takes without making the update."""

from dataclasses import replace
from math import inf, isfinite, nan

import pytest
import torch
from safetensors.torch import save_file

from lora_export.planning.request import make_request, plan_request
from lora_export.verification.factors import needed_for
from lora_export.verification.kinds import proof_of
from lora_export.verification.weights import merged_rows
from lora_export.verification.weights.merged_rows import Expectation
from lora_export.verification.weights.tally import Seen, Tally

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
        proof_of(delta).update(delta, *needed_for(delta, wide, rows)) * scale
        for delta, wide, scale in zip(
            expectation._deltas, expectation._wide, expectation._scales, strict=True
        )
    )
    start = torch.randn(len(rows), size[1])
    found = start.clone()
    norm = expectation._add_update(found, rows)
    torch.testing.assert_close(found, (start + update).float(), rtol=1e-5, atol=1e-4)
    assert norm == pytest.approx(float(update.square().sum()), rel=1e-6)


def one_linear(folder, weight):
    """(expectation of an update of `weight`, its update in float64)."""
    rows, columns = weight.shape
    save_file({"fc.weight": weight}, folder / "base.safetensors")
    factors = {"fc.lora_A": torch.randn(4, columns), "fc.lora_B": torch.randn(rows, 4)}
    save_file(factors, folder / "lora.safetensors")
    files = folder / "base.safetensors", [folder / "lora.safetensors"]
    plan = plan_request(make_request(*files, {"alpha": 6.0}))
    [step] = plan.steps()
    update = factors["fc.lora_B"].double() @ factors["fc.lora_A"].double() * 1.5
    return Expectation(step, plan.recipe), update


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_looked_at_is_left_alone(dtype, tmp_path):
    """It is hashed afterwards; and what is computed in place may be a view of float64."""
    torch.manual_seed(0)
    base = torch.randn(96, 40).to(dtype)
    expectation, _ = one_linear(tmp_path, base)
    wrong = base + 1  # so that every row is looked at more closely
    seen = base.clone(), wrong.clone()
    [found] = expectation.look(0, *seen)
    assert found.error > 1
    assert torch.equal(seen[0], base)
    assert torch.equal(seen[1], wrong)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_few_rows_are_in_float64_at_once(dtype, tmp_path, monkeypatch):
    """A matrix that is small enough to be merged whole, every row of which is wrong."""
    monkeypatch.setattr(merged_rows, "WIDE_ELEMENTS", 400)
    base = torch.randn(96, 40).to(dtype)
    expectation, _ = one_linear(tmp_path, base)
    sizes = []
    real = expectation._update
    monkeypatch.setattr(
        expectation, "_update", lambda wide, rows: (sizes.append(wide.numel()), real(wide, rows))[1]
    )
    found = expectation.look(0, base, base)
    assert all(seen.error > 1 for seen in found)
    assert sum(sizes) == base.numel()
    assert max(sizes) == 400


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_value_hides_no_wrong_scaling(dtype, tmp_path):
    """Its square is no float32 any more; with an infinite tolerance any slope would pass."""
    torch.manual_seed(0)
    base = torch.randn(96, 40)
    base[3, 3] = 1e25
    base = base.to(dtype)
    expectation, update = one_linear(tmp_path, base)
    tally = Tally("fc.weight")
    [seen] = expectation.look(0, base, (base.double() + 1.6 * update).to(dtype))
    tally.add(seen)
    assert isfinite(tally.gain_tolerance)


def test_what_is_no_number_is_the_worst_error():
    zero = Seen(1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, changed=True)
    tally = Tally("fc.weight")
    for error in (0.5, nan, 0.5):
        tally.add(replace(zero, error=error, distance=error))
    assert tally.error == tally.distance == inf
