"""Merged rows before rounding: right for every kind, and an error in the file stays in them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kind_rows import ROWS, kind_of
from safetensors.torch import save_file

from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.tensors import read_tensor, torch_dtype
from lora_export.execution.arithmetic import matrix_of, read_factors, row_blocks
from lora_export.planning.findings import Findings
from lora_export.planning.stored_dtype import in_dtype
from lora_export.records import ShardPlan, Step, TensorSpec
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.unrounded.unrounded_tensor import UnroundedTensor, in_float32
from lora_export.verification.weights.merged_rows import Expectation

HALVES = ("BF16", "F16")
RECIPES = {"loralib": ("loralib",), "peft": ("peft", "peft-safe")}
MERGES = [
    (case, recipe, plan)
    for case in ROWS
    for recipe in RECIPES[ROWS[case].fields.get("recipe", "peft")]
    for plan in ("auto", "exact")
]


def a_step(case, recipe, dtype, folder, *, narrow=False):
    """A step of real files. narrow: the factors are in half precision, as the weight is."""
    torch.manual_seed(0)
    row, kind = ROWS[case], kind_of(case)
    factors = {role: torch.randn(size) * 0.3 for role, size in row.factors(3).items()}
    half = torch_dtype(dtype)
    if narrow:
        factors = {role: factor.to(half) for role, factor in factors.items()}
    save_file(factors, folder / "factors.safetensors")
    save_file({"m.weight": torch.randn(row.weight).to(half)}, folder / "base.safetensors")
    delta = replace(
        row.delta(kind, 3),
        factors=read_checkpoint(folder / "factors.safetensors").tensors(),
        recipe=recipe,
        dtype=dtype,
    )
    delta = replace(delta, scaling=scaling_of(delta))
    source = read_checkpoint(folder / "base.safetensors").tensors()["m.weight"]
    return Step(TensorSpec("m.weight", dtype, row.weight), "merge", source, (delta,))


def stored(step, matrix, folder):
    """A file with these values, as the result holds them."""
    folder = Path(folder)
    save_file({"m.weight": matrix.reshape(step.out.shape)}, folder / "merged.safetensors")
    return read_checkpoint(folder / "merged.safetensors").tensors()["m.weight"]


def by_merge(step, plan):
    """What the merge writes."""
    factors, base = read_factors(step, plan), read_tensor(step.source).reshape(matrix_of(step))
    base = base.to(torch_dtype(step.merge_dtype))
    merged = torch.cat([factors.rows(base[a:b], a, b) for a, b in row_blocks(step)])
    return merged.to(torch_dtype(step.out.dtype))


def by_formula(step, plan):
    """(the float64 formula, how far float32 may be from it)."""
    expected = Expectation(in_float32(step), plan)
    base = read_tensor(step.source).reshape(matrix_of(step)).double()
    update, error = expected.update_of(base, torch.arange(len(base)))
    exact = base + update
    return exact, error + 2**-22 * (exact.abs() + error)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("case", "recipe", "plan"), MERGES)
def test_a_right_tensor_gives_the_formula_in_float32(case, recipe, plan, dtype, tmp_path):
    step = a_step(case, recipe, dtype, tmp_path)
    merged = by_merge(step, plan)
    found = UnroundedTensor(step, plan, stored(step, merged, tmp_path)).rows(0, len(merged))
    exact, error = by_formula(step, plan)
    assert found.dtype == torch.float32
    assert float(((found.double() - exact).abs() / error).max()) <= 1
    # The stored values are far from it, so the comparison shows something.
    assert float(((merged.double() - exact).abs() / error).max()) > 10


def in_another(step, dtype):
    """The same step of a merge with --dtype."""
    [shard] = in_dtype(dtype, [ShardPlan("x", (step,))], Findings())
    return shard.steps[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("case", "recipe"), [(c, r) for c, r, plan in MERGES if plan == "auto"])
def test_so_does_a_tensor_in_another_dtype_than_the_base_s(case, recipe, dtype, tmp_path):
    step = in_another(a_step(case, recipe, "BF16", tmp_path), dtype)
    merged = by_merge(step, "auto")
    found = UnroundedTensor(step, "auto", stored(step, merged, tmp_path)).rows(0, len(merged))
    assert torch.equal(found.to(merged.dtype), merged)
    exact, error = by_formula(step, "auto")
    assert float(((found.double() - exact).abs() / error).max()) <= 1
    wrong = merged.clone()
    wrong[3, 0] = wrong[3, 0] * 1.5 + 1
    kept = UnroundedTensor(step, "auto", stored(step, wrong, tmp_path)).rows(0, len(merged))
    assert (kept - found).nonzero().tolist() == [[3, 0]]
    assert kept[3, 0] - found[3, 0] == pytest.approx(float(wrong[3, 0]) - float(merged[3, 0]))


@pytest.mark.parametrize("case", ["linear", "merged_linear", "conv", "litgpt_qkv"])
def test_so_do_factors_in_half_precision(case, tmp_path):
    """loralib then multiplies them in half precision, which is rounding as well."""
    recipe = ROWS[case].fields.get("recipe", "peft")
    step = a_step(case, recipe, "BF16", tmp_path, narrow=True)
    merged = by_merge(step, "auto")
    found = UnroundedTensor(step, "auto", stored(step, merged, tmp_path)).rows(0, len(merged))
    exact, error = by_formula(step, "auto")
    assert float(((found.double() - exact).abs() / error).max()) <= 1


@pytest.mark.parametrize("case", ["linear", "merged_linear", "dora_linear turned", "experts"])
def test_rows_are_those_of_the_whole(case, tmp_path):
    step = a_step(case, ROWS[case].fields.get("recipe", "peft"), "BF16", tmp_path)
    merged = by_merge(step, "auto")
    tensor = UnroundedTensor(step, "auto", stored(step, merged, tmp_path))
    whole = tensor.rows(0, len(merged)).clone()
    assert torch.equal(torch.cat([tensor.rows(0, 5), tensor.rows(5, len(merged))]), whole)


def test_rows_of_a_large_tensor_cross_the_blocks_of_the_merge(tmp_path):
    case = replace(ROWS["linear"], weight=(600, 640))
    case = replace(case, factors=lambda r: {"A": (r, 640), "B": (600, r)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROWS, "linear", case)
        step = a_step("linear", "peft", "BF16", tmp_path)
    assert len(row_blocks(step)) > 1
    merged = by_merge(step, "auto")
    tensor = UnroundedTensor(step, "auto", stored(step, merged, tmp_path))
    whole = tensor.rows(0, 600)
    assert torch.equal(tensor.rows(100, 450), whole[100:450])
    exact, error = by_formula(step, "auto")
    assert float(((whole.double() - exact).abs() / error).max()) <= 1


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", ["linear", "merged_linear", "dora_linear", "attention_out"])
def test_a_wrong_element_keeps_its_error(case, dtype, tmp_path):
    step = a_step(case, ROWS[case].fields.get("recipe", "peft"), dtype, tmp_path)
    merged = by_merge(step, "auto")
    right = UnroundedTensor(step, "auto", stored(step, merged, tmp_path)).rows(0, len(merged))
    wrong = merged.clone()
    wrong[3, 2] *= 1.5
    found = UnroundedTensor(step, "auto", stored(step, wrong, tmp_path)).rows(0, len(merged))
    moved = (wrong.float() - merged.float()).nonzero().tolist()
    assert (found - right).nonzero().tolist() == moved == [[3, 2]]
    assert found[3, 2] - right[3, 2] == pytest.approx(float(wrong[3, 2] - merged[3, 2]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", ["linear", "merged_linear", "dora_linear", "loha", "experts"])
def test_a_wrong_scaling_keeps_its_error(case, dtype, tmp_path):
    """Half a percent moves few elements to their neighbours, and together as far as it should."""
    step = a_step(case, ROWS[case].fields.get("recipe", "peft"), dtype, tmp_path)
    exact, _ = by_formula(step, "auto")
    base = read_tensor(step.source).reshape(exact.shape).double()
    update = exact - base
    wrong = (base + 1.02 * update).to(torch_dtype(dtype))
    found = UnroundedTensor(step, "auto", stored(step, wrong, tmp_path)).rows(0, len(wrong))
    gain = float(((found.double() - exact) * update).sum() / update.square().sum())
    assert gain == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("case", "recipe"), [(c, r) for c, r, plan in MERGES if plan == "auto"])
def test_another_order_of_summation_is_no_error(case, recipe, dtype, tmp_path):
    """As of another processor: sums in float64 instead of float32, and the same roundings after."""
    step = a_step(case, recipe, dtype, tmp_path)
    merged = by_merge(step, "auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_export.execution.arithmetic._finite_factors", in_float64)
        other = by_merge(step, "auto")
    tensor = UnroundedTensor(step, "auto", stored(step, other, tmp_path))
    found = tensor.rows(0, len(merged))
    exact, error = by_formula(step, "auto")
    assert float(((found.double() - exact).abs() / error).max()) <= 1


def in_float64(delta, **_):
    return {role: read_tensor(ref).double() for role, ref in delta.factors.items()}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_tie_may_be_rounded_either_way(dtype, tmp_path):
    """Elements that lie in the middle between two numbers, so that one bit of the sum decides."""
    half = torch_dtype(dtype)
    ulp = torch.finfo(half).eps
    step = a_step("lora_bias", "peft", dtype, tmp_path)
    base = 1 + torch.randint(0, 7, (24,)) * ulp
    scaling = step.deltas[0].scaling
    save_file({"m.weight": base.to(half)}, tmp_path / "base.safetensors")
    save_file({"bias": torch.full((24,), ulp / 2 / scaling)}, tmp_path / "factors.safetensors")
    low, high = base.to(half), (base + ulp).to(half)
    for either in (low, high):
        tensor = UnroundedTensor(step, "auto", stored(step, either, tmp_path))
        found = tensor.rows(0, 24).flatten()
        torch.testing.assert_close(found, base + ulp / 2, rtol=1e-6, atol=0)
    wrong = (base + 2 * ulp).to(half)
    tensor = UnroundedTensor(step, "auto", stored(step, wrong, tmp_path))
    assert bool((tensor.rows(0, 24).flatten() - (base + ulp / 2) > 0.9 * ulp).all())
