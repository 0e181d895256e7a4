"""What storing left of an adapter: measured, and named wherever a merge is reported."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge, verify
from lora_export.records import KeptUpdate, Survival
from lora_export.report.survival import survival_facts, survival_lines
from lora_export.report.text import report_text
from lora_export.verification.weights.survival import row_step

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MORE = {"bfloat16": ("float16", "float32"), "float16": ("float32",), "float32": ()}


def files(folder, dtype, size, shape=(96, 80)):
    """A base of two layers and an adapter of both, whose update has about this size."""
    torch.manual_seed(1)
    rows, columns = shape
    names = ("first.fc", "second.fc")
    base = {f"{name}.weight": torch.randn(shape).mul(0.05).to(TORCH[dtype]) for name in names}
    base["plain.weight"] = torch.randn(4).to(TORCH[dtype])
    low = {}
    for name, more in zip(names, (1.0, 3.0), strict=True):
        low[f"{name}.lora_A"] = torch.randn(4, columns) * more
        low[f"{name}.lora_B"] = torch.randn(rows, 4) * size / 2
    save_file(base, folder / "base.safetensors")
    save_file(low, folder / "lora.safetensors")
    return folder / "base.safetensors", [folder / "lora.safetensors"]


def exactly(folder, dtype, name):
    """(share, moved, otherwise) of one tensor, from the files, in float64."""
    base = load_file(folder / "base.safetensors")[f"{name}.weight"]
    low = load_file(folder / "lora.safetensors")
    stored = load_file(folder / "out.safetensors")[f"{name}.weight"]
    update = low[f"{name}.lora_B"].double() @ low[f"{name}.lora_A"].double() * 2  # alpha 8, r 4
    exact = base.double() + update
    share = [
        1 - float((each.double() - exact).square().sum() / update.square().sum())
        for each in (stored, *(exact.to(TORCH[other]) for other in MORE[dtype]))
    ]
    return (
        share[0],
        float((stored != base).double().mean()),
        dict(zip(MORE[dtype], share[1:], strict=True)),
    )


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-5])
@pytest.mark.parametrize("dtype", TORCH)
def test_the_figures_are_those_of_the_files(dtype, size, tmp_path):
    report = merge(*files(tmp_path, dtype, size), tmp_path / "out.safetensors", alpha=8.0)
    found = report.facts["survival"]
    assert found["dtypes"] == [dtype]
    assert found["tensors"].keys() == {"first.fc.weight", "second.fc.weight"}
    for name in ("first.fc", "second.fc"):
        share, moved, others = exactly(tmp_path, dtype, name)
        one = found["tensors"][f"{name}.weight"]
        assert one["share"] == pytest.approx(share, abs=2e-6)
        assert one["moved"] == pytest.approx(moved, abs=2e-6)
        assert ("otherwise" in one) == (share < 0.9)
        if "otherwise" in one:
            assert one["otherwise"] == pytest.approx(others, abs=2e-6)
    assert (found["note"] == "") == all(one["share"] >= 0.9 for one in found["tensors"].values())


def test_all_tensors_together_count_by_their_updates(tmp_path):
    report = merge(*files(tmp_path, "bfloat16", 1e-4), tmp_path / "out.safetensors", alpha=8.0)
    low = load_file(tmp_path / "lora.safetensors")
    sizes = [
        float((low[f"{name}.lora_B"].double() @ low[f"{name}.lora_A"].double()).square().sum())
        for name in ("first.fc", "second.fc")
    ]
    one, other = report.facts["survival"]["tensors"].values()
    wanted = (one["share"] * sizes[0] + other["share"] * sizes[1]) / sum(sizes)
    assert report.facts["survival"]["share"] == pytest.approx(wanted, abs=2e-6)
    assert report.facts["survival"]["moved"] == pytest.approx((one["moved"] + other["moved"]) / 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_some_rows_of_a_large_tensor_stand_for_all(dtype, tmp_path):
    shape = (640, 512)
    assert row_step(640 * 512) > 1
    report = merge(*files(tmp_path, dtype, 1e-4, shape), tmp_path / "out.safetensors", alpha=8.0)
    found = report.facts["survival"]["tensors"]["first.fc.weight"]
    share, moved, _ = exactly(tmp_path, dtype, "first.fc")
    assert 1 - found["share"] == pytest.approx(1 - share, rel=0.05, abs=1e-6)
    assert found["moved"] == pytest.approx(moved, abs=0.02)


def test_every_step_is_odd_and_none_is_longer_than_a_block():
    steps = {row_step(1 << bits) for bits in range(40)}
    assert all(step % 2 == 1 for step in steps)
    assert (min(steps), max(steps)) == (1, 255)


def folder(tmp_path, size=2e-5):
    base, [adapter] = files(tmp_path, "bfloat16", size)
    (tmp_path / "base").mkdir()
    base.rename(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path / "base", [adapter]


def test_every_form_of_the_report_names_it(tmp_path):
    base, adapters = folder(tmp_path)
    report = merge(base, adapters, tmp_path / "out", alpha=8.0)
    found = report.facts["survival"]
    assert found["share"] < 0.9
    assert found["note"].startswith("float16 would keep 9")
    assert "float32 all" in found["note"]
    [line] = [one for one in report_text(report, verbose=False).splitlines() if "survives" in one]
    assert line.startswith(f"stored in bfloat16, {found['share']:.1%} of the update survives; ")
    assert json.loads((tmp_path / "out" / "lora_export.json").read_text())["survival"] == found
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"Stored in bfloat16, {found['share']:.1%} of the update survives." in page
    assert found["note"] in page
    again = verify(tmp_path / "out", base=base, adapters=adapters)
    assert again.facts["survival"] == found


def test_without_a_proof_nothing_is_known(tmp_path):
    base, adapters = folder(tmp_path)
    report = merge(base, adapters, tmp_path / "out", alpha=8.0, verify=False)
    assert "survival" not in report.facts
    assert "survival" not in json.loads((tmp_path / "out" / "lora_export.json").read_text())
    assert "survives" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("whole", "tensors", "words"),
    [
        (KeptUpdate(1.0, 1.0), {}, ["the whole update survives; every element moved"]),
        (
            KeptUpdate(0.99994, 0.5),
            {},
            ["99.99% of the update survives; 50.0% of the elements moved"],
        ),
        (
            KeptUpdate(0.62, 0.4, {"F16": 0.9963, "F32": 1.0}),
            {},
            ["62.0% of the update survives", "note: float16 would keep 99.6%, float32 all"],
        ),
        (KeptUpdate(0.62, 0.4, {"F16": 0.3, "F32": 1.0}), {}, ["note: float32 would keep all"]),
        (KeptUpdate(0.62, 0.4), {}, ["note: no dtype of fewer than 64 bits would keep more"]),
        (KeptUpdate(-3.0, 0.4), {}, ["rounding moves the weights as far as the adapter does"]),
        (
            KeptUpdate(0.97, 0.9, {"F16": 1.0}),
            {"b": KeptUpdate(0.3, 0.2, {"F16": 0.98}), "a": KeptUpdate(0.99, 1.0)},
            [
                "97.0% of the update survives",
                "less than 90% survives in 1 of 2 tensors, 30.0% in b",
                "; float16 would keep 98.0% there",
            ],
        ),
    ],
)
def test_the_words(whole, tensors, words):
    entry = survival_facts(Survival(whole, tensors, ("BF16",)))["survival"]
    text = "\n".join(survival_lines(entry))
    assert all(word in text for word in words), text
