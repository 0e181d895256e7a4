"""How large each update is beside its weight: held against the product and the base, by torch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import lora_export


def norms(tmp_path, weight, a, b, **settings):
    """The two norms that a merge of these factors reports for its only tensor."""
    base, lora = tmp_path / "base.safetensors", tmp_path / "lora.safetensors"
    save_file({"fc.weight": weight, "other.weight": weight.clone()}, base)
    zero = {"other.lora_A": a.clone(), "other.lora_B": b * 0}
    save_file({"fc.lora_A": a, "fc.lora_B": b, **zero}, lora)
    report = lora_export.merge(
        base, [lora], tmp_path / "out.safetensors", alpha=6, allow_noop=True, **settings
    )
    found = report.facts["update_sizes"]
    assert list(found) == ["fc.weight", "other.weight"]
    assert found["other.weight"]["update"] == 0.0
    return found["fc.weight"]["update"], found["fc.weight"]["weight"]


def drawn(rows, columns, dtype, rank=2):
    draw = torch.Generator().manual_seed(0)
    shapes = ((rows, columns), (rank, columns), (rows, rank))
    weight, a, b = (torch.randn(shape, generator=draw) for shape in shapes)
    return weight.to(dtype), a, b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_of_a_small_tensor_both_norms_are_exact(tmp_path, dtype):
    weight, a, b = drawn(60, 40, dtype)
    update, whole = norms(tmp_path, weight, a, b)
    assert update == pytest.approx(float((b.double() @ a.double()).norm() * 3), rel=1e-5)
    assert whole == pytest.approx(float(weight.double().norm()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_large_tensor_the_weight_is_extrapolated(tmp_path, dtype):
    weight, a, b = drawn(2000, 300, dtype)
    update, whole = norms(tmp_path, weight, a, b)
    assert update == pytest.approx(float((b.double() @ a.double()).norm() * 3), rel=1e-4)
    assert whole == pytest.approx(float(weight.double().norm()), rel=0.02)


def test_the_norms_do_not_depend_on_the_number_of_threads(tmp_path):
    weight, a, b = drawn(2000, 300, torch.bfloat16)
    one = norms(tmp_path, weight, a, b, jobs=1)
    assert norms(tmp_path, weight, a, b, jobs=4, force=True) == one


def test_a_merge_into_another_dtype_is_measured_against_the_base(tmp_path):
    weight, a, b = drawn(60, 40, torch.float32)
    update, whole = norms(tmp_path, weight, a, b, dtype="bfloat16")
    assert update == pytest.approx(float((b.double() @ a.double()).norm() * 3), rel=1e-5)
    assert whole == pytest.approx(float(weight.double().norm()), rel=1e-3)


def test_verify_reports_the_same_norms(tmp_path):
    weight, a, b = drawn(60, 40, torch.bfloat16)
    found = norms(tmp_path, weight, a, b)
    report = lora_export.verify(
        tmp_path / "out.safetensors", base=tmp_path / "base.safetensors",
        adapters=[tmp_path / "lora.safetensors"], alpha=6, allow_noop=True,
    )  # fmt: skip
    entry = report.facts["update_sizes"]["fc.weight"]
    assert (entry["update"], entry["weight"]) == found
