"""Whole tensors of an adapter, and the base's adapted weights, that are not what they must be."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge, verify
from lora_export.errors import FitError, InputError

WEIGHT = torch.arange(30.0).view(6, 5) / 7
FACTORS = {"fc.lora_A": torch.ones(2, 5), "fc.lora_B": torch.arange(12.0).view(6, 2)}


def merged(folder, base, full, weight=WEIGHT):
    save_file({"fc.weight": weight, "full": base}, folder / "base.safetensors")
    save_file({**FACTORS, "full": full}, folder / "lora.safetensors")
    base, adapter = folder / "base.safetensors", folder / "lora.safetensors"
    merge(base, [adapter], folder / "out.safetensors", alpha=4.0)
    return load_file(folder / "out.safetensors")


def of(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


REFUSED = {
    # base, full tensor -> error, words
    "NaN": (of(1, 2), of(1, torch.nan), InputError, "full: holds NaN"),
    "infinity": (of(1, 2), of(torch.inf, 1), InputError, "full: holds NaN or infinity"),
    "NaN in another dtype": (of(1), of(torch.nan, dtype=torch.bfloat16), InputError, "NaN"),
    "too large for half": (of(1, dtype=torch.float16), of(1e6), FitError, "overflow F16"),
    "too large for float": (of(1), of(1e300, dtype=torch.float64), FitError, "overflow F32"),
    "too large for int": (
        of(1, dtype=torch.int32), of(1 << 40, dtype=torch.int64), FitError, "overflow I32"
    ),
    "float over int": (of(1, dtype=torch.int64), of(0.5), FitError, "stored as F32, .* as I64"),
    "int over float": (of(1), of(1, dtype=torch.int64), FitError, "stored as I64, .* as F32"),
    "float over unsigned": (of(1, dtype=torch.uint32), of(1), FitError, "as U32"),
    "float over float8": (of(1).to(torch.float8_e4m3fn), of(1), FitError, "as F8_E4M3"),
    "bool over int": (of(1, dtype=torch.int64), of(1, dtype=torch.bool), FitError, "as BOOL"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    base, full, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        merged(tmp_path, base, full)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("base", "full"),
    [
        (of(1, 2, dtype=torch.int64), of(3, 4, dtype=torch.int32)),
        (of(1, 2, dtype=torch.int32), of(3, 4, dtype=torch.int64)),
        (of(1, 2, dtype=torch.float16), of(3, 60000)),
        (of(1, 2), of(3, 4, dtype=torch.bfloat16)),
        (of(1, 2, dtype=torch.uint32), of(3, 4, dtype=torch.uint32)),
    ],
)
def test_cast_to_the_dtype_of_the_base(base, full, tmp_path):
    found = merged(tmp_path, base, full)["full"]
    assert found.dtype == base.dtype
    assert torch.equal(found, full.to(base.dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapted_weight_that_is_no_number(bad, dtype, tmp_path, recwarn):
    weight = WEIGHT.to(dtype, copy=True)
    good = merged(tmp_path, of(1), of(2), weight=weight)
    weight[2, 3] = bad
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r"fc\.weight: the adapted weight holds NaN"):
        merged(tmp_path / "again", of(1), of(2), weight=weight)
    save_file({**good, "fc.weight": weight}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"fc\.weight: the adapted weight holds NaN"):
        verify(
            tmp_path / "other.safetensors",
            base=tmp_path / "again" / "base.safetensors",
            adapters=[tmp_path / "lora.safetensors"],
            alpha=4.0,
        )
    assert not recwarn
