"""Files that hold alpha: it is read from them, and nothing else says it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lora_export.api import inspect, merge, verify
from lora_export.errors import FitError, InputError, UsageError

FORMS = {"bare": "", "weight": ".weight"}
SHAPES = {"h.0.q": (6, 6), "h.0.up": (10, 6), "h.1.q": (6, 6)}


def write(folder, form="", *, alphas=None, dtype=torch.float32, base_dtype=None, extra=()):
    """(base, adapter, expected): kohya's merge, one float32 sum of the product times alpha / r."""
    torch.manual_seed(0)
    alphas = {"h.0.q": 2.0, "h.0.up": 4.0, "h.1.q": 3.0} if alphas is None else alphas
    base = {f"{n}.weight": torch.randn(s).to(base_dtype or dtype) for n, s in SHAPES.items()}
    adapter, expected = dict(extra), {}
    for name, (out, in_) in SHAPES.items():
        a, b = torch.randn(3, in_).to(dtype), torch.randn(out, 3).to(dtype)
        adapter |= {f"{name}.lora_A{form}": a, f"{name}.lora_B{form}": b}
        alpha = alphas.get(name)
        if alpha is not None:
            adapter[f"{name}.alpha"] = torch.as_tensor(alpha).to(dtype)
        scaling = (3 if alpha is None else float(alpha)) / 3
        weight = base[f"{name}.weight"]
        update = (b.float() @ a.float()) * scaling
        expected[f"{name}.weight"] = (weight.float() + update).to(weight.dtype)
    save_file(base, folder / "base.safetensors")
    save_file(adapter, folder / "lora.safetensors")
    return folder / "base.safetensors", folder / "lora.safetensors", expected


def assert_merged(out, expected):
    found = load_file(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_alpha_is_in_the_file(form, dtype, tmp_path):
    base_dtype = torch.float32 if dtype == torch.float64 else dtype
    base, adapter, expected = write(tmp_path, form, dtype=dtype, base_dtype=base_dtype)
    report = merge(base, [adapter], tmp_path / "out.safetensors")
    assert report.passed
    if dtype == torch.float64:
        found = load_file(tmp_path / "out.safetensors")
        assert all(torch.allclose(found[n], each, atol=1e-6) for n, each in expected.items())
    else:
        assert_merged(tmp_path / "out.safetensors", expected)
    assert verify(tmp_path / "out.safetensors", base=base, adapters=[adapter]).passed
    assert inspect(adapter).facts["found"]["not_in_the_file"] == []


@pytest.mark.parametrize(
    "value", [torch.tensor(2), torch.tensor([2.0]), torch.tensor(2, dtype=torch.int8)]
)
def test_whole_numbers_and_one_element_are_alphas_too(value, tmp_path):
    base, adapter, expected = write(tmp_path, alphas=dict.fromkeys(SHAPES, 2.0))
    tensors = load_file(adapter)
    save_file({n: value.clone() if n.endswith("alpha") else t for n, t in tensors.items()}, adapter)
    merge(base, [adapter], tmp_path / "out.safetensors")
    assert_merged(tmp_path / "out.safetensors", expected)


def test_an_option_that_repeats_it_is_fine(tmp_path):
    base, adapter, expected = write(tmp_path, alphas=dict.fromkeys(SHAPES, 2.0))
    (tmp_path / "facts.toml").write_text("alpha = 2\nfan_in_fan_out = false\n")
    merge(base, [adapter], tmp_path / "out.safetensors", alpha=2, hparams=tmp_path / "facts.toml")
    assert_merged(tmp_path / "out.safetensors", expected)


def test_an_option_that_says_another_is_refused(tmp_path):
    base, adapter, _ = write(tmp_path, alphas=dict.fromkeys(SHAPES, 2.0))
    (tmp_path / "facts.toml").write_text('[[module]]\nmatch = "h.1.*"\nalpha = 5\n')
    for options, other in (({"alpha": 4}, "4"), ({"hparams": tmp_path / "facts.toml"}, "5")):
        with pytest.raises(UsageError) as caught:
            merge(base, [adapter], tmp_path / "out.safetensors", **options)
        assert f"alpha is 2 in lora.safetensors but {other} in" in str(caught.value)


def test_no_alpha_in_some_modules_is_a_scaling_of_1_and_warned_of(tmp_path):
    base, adapter, expected = write(tmp_path, alphas={"h.0.q": 2.0, "h.1.q": 3.0})
    report = merge(base, [adapter], tmp_path / "out.safetensors")
    assert_merged(tmp_path / "out.safetensors", expected)
    (warning,) = report.plan.warnings
    assert "1 of 3 modules have no alpha" in warning
    assert "h.0.up" in warning


def test_no_alpha_at_all_is_asked_for(tmp_path):
    base, adapter, _ = write(tmp_path, alphas={})
    with pytest.raises(UsageError, match="alpha is not in the file"):
        merge(base, [adapter], tmp_path / "out.safetensors", fan_in_fan_out=False)


def test_alpha_0_has_two_meanings_and_is_asked_for(tmp_path):
    base, adapter, _ = write(tmp_path, alphas={"h.0.q": 0.0, "h.0.up": 2.0, "h.1.q": 2.0})
    with pytest.raises(UsageError, match=r"alpha is 0 in lora\.safetensors") as caught:
        merge(base, [adapter], tmp_path / "out.safetensors")
    assert "--hparams" in str(caught.value)
    (tmp_path / "facts.toml").write_text('[[module]]\nmatch = "h.0.q"\nalpha = 6\n')
    merge(base, [adapter], tmp_path / "out.safetensors", hparams=tmp_path / "facts.toml")
    tensors, found = load_file(adapter), load_file(tmp_path / "out.safetensors")
    weight = load_file(base)["h.0.q.weight"]
    update = (tensors["h.0.q.lora_B"] @ tensors["h.0.q.lora_A"]) * 2
    assert torch.equal(found["h.0.q.weight"], weight + update)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_refused(value, tmp_path):
    base, adapter, _ = write(tmp_path, alphas={"h.0.q": value})
    with pytest.raises(InputError, match=r"h\.0\.q\.alpha: alpha is"):
        merge(base, [adapter], tmp_path / "out.safetensors")


def test_it_is_never_written_as_a_tensor(tmp_path):
    base, adapter, expected = write(tmp_path)
    with pytest.raises(UsageError, match="fits no full tensor"):
        merge(base, [adapter], tmp_path / "out.safetensors", allow_new=["*.alpha"])
    merge(base, [adapter], tmp_path / "out.safetensors")
    assert_merged(tmp_path / "out.safetensors", expected)


def test_an_alpha_without_factors_is_a_tensor_of_the_base(tmp_path):
    activation = {"h.0.act.alpha": torch.tensor(0.25)}
    base, adapter, _ = write(tmp_path, extra=activation.items())
    with pytest.raises(FitError, match=r"h\.0\.act\.alpha"):
        merge(base, [adapter], tmp_path / "out.safetensors")
    save_file({**load_file(base), "h.0.act.alpha": torch.tensor(0.5)}, base)
    merge(base, [adapter], tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["h.0.act.alpha"] == 0.25


def test_a_convolution_is_merged_as_kohya_does(tmp_path):
    torch.manual_seed(0)
    weight, a, b = torch.randn(6, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1)
    save_file({"c.weight": weight}, tmp_path / "base.safetensors")
    alpha = {"c.alpha": torch.tensor(3.0)}
    factors = {"c.lora_A.weight": a, "c.lora_B.weight": b}
    save_file({**factors, **alpha}, tmp_path / "lora.safetensors")
    out = tmp_path / "out.safetensors"
    merge(tmp_path / "base.safetensors", [tmp_path / "lora.safetensors"], out)
    update = F.conv2d(a.permute(1, 0, 2, 3), b).permute(1, 0, 2, 3) * 1.5
    assert torch.equal(load_file(out)["c.weight"], weight + update)


WRONG = {
    "a partner missing": (["h.0.q.lora_B"], {}, "its partner is there"),
    "two keys of one factor": ([], {"h.0.q.lora_A.weight": (3, 6)}, "the same factor"),
    "a vector": (["h.0.q.lora_A"], {"h.0.q.lora_A": (6,)}, "not two positive sizes"),
    "a bias of B": ([], {"h.0.q.lora_B.bias": (6,)}, "not merged yet"),
    "a difference of the bias": ([], {"h.0.q.diff_b": (6,)}, "not merged yet"),
}


@pytest.mark.parametrize(("without", "more", "words"), WRONG.values(), ids=WRONG)
def test_a_broken_file_is_refused(without, more, words, tmp_path):
    base, adapter, _ = write(tmp_path)
    tensors = {n: t for n, t in load_file(adapter).items() if n not in without}
    save_file({**tensors, **{n: torch.ones(s) for n, s in more.items()}}, adapter)
    with pytest.raises(InputError, match=words):
        merge(base, [adapter], tmp_path / "out.safetensors")
