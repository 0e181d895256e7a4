"""Weights merged from PEFT's tuners beside LoRA have the bits of PEFT's own merge_and_unload()."""

import json
import shutil

import peft
import peft_tuners
import pytest
import torch
from peft_tuners import CONFIGS, DTYPES, edit_config, merged_by_peft, quiet, save_case
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.execution import arithmetic

MODEL = f"{peft_tuners.__file__}:build"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(base, adapter) of a configuration, made once for both recipes."""
    made = {}

    def of(name, dtype):
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp("case")
            made[name, dtype] = save_case(name, DTYPES[dtype], folder)
        return made[name, dtype]

    return of


def differing(merged, expected):
    return [name for name, tensor in expected.items() if not torch.equal(merged[name], tensor)]


@pytest.mark.parametrize("recipe", ["auto", "peft-safe"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_merge_is_bit_equal_to_peft(name, dtype, recipe, case, tmp_path):
    base, adapter = case(name, dtype)
    expected = merged_by_peft(base, adapter, safe=recipe == "peft-safe")

    model = MODEL if recipe == "auto" and dtype == "fp32" else None
    known = {"fan_in_fan_out": True} if "turned" in name else {}  # a bare file does not tell it
    out = tmp_path / "out.safetensors"
    report = merge(base, [adapter], out, recipe=recipe, model=model, **known)

    merged, before = load_file(tmp_path / "out.safetensors"), load_file(base)
    assert merged.keys() == expected.keys()
    assert differing(merged, expected) == []
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert changed == {step.out.name for step in report.plan.changed()}
    assert report.passed


@pytest.mark.parametrize("name", [n for n in CONFIGS if "turned" not in n and "line" not in n])
def test_blocks_and_threads_leave_the_bits_alone(name, case, tmp_path, monkeypatch):
    base, adapter = case(name, "bf16")
    monkeypatch.setattr(arithmetic, "BLOCK_BYTES", 10_000)
    report = merge(base, [adapter], tmp_path / "out.safetensors", jobs=3)
    assert differing(load_file(tmp_path / "out.safetensors"), merged_by_peft(base, adapter)) == []
    assert report.passed


@pytest.mark.parametrize("recipe", ["auto", "exact"])
@pytest.mark.parametrize("name", ["adalora pruned", "loha effective", "lokr both", "vera drawn",
                                  "ia3", "ia3 feedforward"])  # fmt: skip
def test_a_weight_of_the_user_scales_the_change(name, recipe, case, tmp_path):
    """Half the update, in the exact sum; what the proof finds of it is the model's as well."""
    base, adapter = case(name, "fp32")
    out = tmp_path / "out.safetensors"
    report = merge(base, [adapter], out, weight=[0.5], recipe=recipe, model=MODEL)
    assert report.passed
    before, whole, half = load_file(base), merged_by_peft(base, adapter), load_file(out)
    for key, tensor in before.items():
        assert torch.allclose(half[key], tensor + (whole[key] - tensor) / 2, atol=1e-5)


def test_double_precision_takes_the_scale_of_loha_in_single(tmp_path):
    base, adapter = save_case("loha", torch.float64, tmp_path)
    merge(base, [adapter], tmp_path / "out.safetensors")
    assert differing(load_file(tmp_path / "out.safetensors"), merged_by_peft(base, adapter)) == []


FAULTS = {
    "scaling 0.5 % too small": lambda base, merged: base + (merged - base) * 0.995,
    "skipped": lambda base, _: base,
    "applied twice": lambda base, merged: base + (merged - base) * 2,
    "transposed": lambda base, merged: base + (merged - base).T,
    "of other rows": lambda base, merged: base + (merged - base).roll(1, 0),
    "one element": lambda _, merged: merged + torch.eye(48).cumsum(0).cumprod(1) * 1e-5,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["adalora", "loha", "lokr", "vera", "vera drawn", "ia3",
                                  "ia3 feedforward"])  # fmt: skip
def test_the_weight_proof_catches_a_fault(name, fault, case, tmp_path, monkeypatch):
    from lora_export.errors import VerificationError
    from lora_export.execution.rows import Merge

    base, adapter = case(name, "fp32")
    right = Merge.rows

    def faulty(merge, rows, first, stop):
        merged = right(merge, rows, first, stop)
        square = merge.step.out.name == "square.weight"
        return FAULTS[fault](rows, merged).contiguous() if square else merged

    monkeypatch.setattr(Merge, "rows", faulty)
    with pytest.raises(VerificationError, match="square"):
        merge(base, [adapter], tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_bias_that_was_not_multiplied_is_caught(case, tmp_path, monkeypatch):
    from lora_export.errors import VerificationError
    from lora_export.execution.rows import Merge

    base, adapter = case("ia3", "fp32")
    right = Merge.rows

    def faulty(merge, rows, first, stop):
        merged = right(merge, rows, first, stop)
        return rows if merge.step.out.name == "plain.bias" else merged

    monkeypatch.setattr(Merge, "rows", faulty)
    with pytest.raises(VerificationError, match=r"plain\.bias"):
        merge(base, [adapter], tmp_path / "out.safetensors")


def test_files_of_an_older_peft_have_its_defaults(tmp_path):
    """Members that say what the default says may be missing."""
    with quiet():
        defaults = older_configs()
    for name, (config, members) in defaults.items():
        config.target_modules = {"plain", "large"}
        folder = tmp_path / name
        folder.mkdir()
        base, adapter = save_case(config, torch.float32, folder)
        expected = merged_by_peft(base, adapter)
        edit_config(adapter, **dict.fromkeys(members))
        merge(base, [adapter], folder / "out.safetensors")
        assert differing(load_file(folder / "out.safetensors"), expected) == [], name


def older_configs():
    """(configuration, members to take away from what it is saved as)."""
    return {
        "adalora": (peft.AdaLoraConfig(init_r=12, total_step=1), ("rank_pattern", "lora_alpha")),
        "loha": (peft.LoHaConfig(), ("r", "alpha", "rank_pattern", "alpha_pattern")),
        "lokr": (peft.LoKrConfig(), ("r", "alpha", "rank_pattern", "alpha_pattern")),
        "vera": (peft.VeraConfig(), ("r", "projection_prng_key", "save_projection")),
        "vera drawn": (
            peft.VeraConfig(save_projection=False), ("r", "projection_prng_key")
        ),
    }  # fmt: skip


def test_ranknum_of_a_dump_is_read(case, tmp_path):
    base, adapter = case("adalora", "fp32")
    expected = merged_by_peft(base, adapter)
    for rank, passes in ((6.0, True), (5.0, False)):
        folder = tmp_path / str(rank)
        shutil.copytree(adapter, folder)
        path = folder / "adapter_model.safetensors"
        stored = load_file(path)
        extra = {f"{key[:-7]}.ranknum.default": torch.tensor([rank]) for key in stored
                 if key.endswith(".lora_E")}  # fmt: skip
        save_file({**stored, **extra}, path)
        out = tmp_path / f"{rank}.safetensors"
        if passes:
            merge(base, [folder], out)
            assert differing(load_file(out), expected) == []
        else:
            with pytest.raises(Exception, match=r"ranknum is 5.0, but init_r .* is 6"):
                merge(base, [folder], out)


def test_what_inspect_tells(case):
    from lora_export.api import inspect

    for name in ("adalora pruned", "lokr whole", "vera drawn", "ia3"):
        told = json.loads(json.dumps(inspect(case(name, "fp32")[1]).facts))
        assert told["found"]["modules"], name
