"""Every layer that PEFT adapts is merged with PEFT's own bits, in every dtype and recipe."""

import pytest
import torch
from peft_layers import DTYPES, LAYERS, train
from safetensors.torch import load_file, save_file

from lora_export.api import merge

RANKS = {"F32": 1, "BF16": 4, "F16": 16}
PEFT_FAILS = {"conv3d flat"}  # on the kernel (1, 1, 1), which it takes for a Conv2d's


def settings_of(name):
    """What the layer can be trained with: plain, DoRA, a bias of B."""
    turned = {"fan_in_fan_out": True} if name.startswith("Conv1D") else {}
    yield turned
    yield {**turned, "use_dora": True}
    if name in ("linear", "embedding", "conv2d"):
        yield {"use_rslora": True, "lora_alpha": 5}
    if name in ("linear", "linear square", "embedding"):
        yield {"init_lora_weights": "mica"}
    if "no bias" not in name and "embedding" not in name:
        yield {**turned, "lora_bias": True}


CASES = [(name, one) for name in LAYERS if name not in PEFT_FAILS for one in settings_of(name)]
CASES += [("attention", {}), ("attention", {"use_rslora": True})]


def told(value):
    return "+".join(k for k in value if k != "fan_in_fan_out") if isinstance(value, dict) else value


def asked_for(name):
    """What a bare file of one square weight does not tell."""
    return {"fan_in_fan_out": True} if name == "Conv1D square" else {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "settings"), CASES, ids=told)
def test_the_merge_has_the_bits_of_peft(name, settings, dtype, tmp_path):
    if "large" in name and dtype == "F16":
        pytest.skip("as in bfloat16")
    for recipe, safe in (("auto", False), ("peft-safe", True)):
        trained = train(name, dtype, r=RANKS[dtype], **settings)
        trained.save(tmp_path / "adapter")
        save_file(trained.base, tmp_path / "base.safetensors")
        merge(
            tmp_path / "base.safetensors",
            [tmp_path / "adapter"],
            tmp_path / f"{recipe}.safetensors",
            recipe=recipe,
            **asked_for(name),
        )
        merged, wanted = load_file(tmp_path / f"{recipe}.safetensors"), trained.merged(safe=safe)
        assert merged.keys() == wanted.keys()
        assert [key for key in merged if not torch.equal(merged[key], wanted[key])] == []


def test_a_flat_conv3d_on_which_peft_fails_is_the_unmerged_layer(tmp_path):
    trained = train("conv3d flat", lora_bias=True)
    x = torch.randn(2, 3, 4, 4, 4)
    before = trained.model(x)
    trained.save(tmp_path / "adapter")
    save_file(trained.base, tmp_path / "base.safetensors")
    merge(tmp_path / "base.safetensors", [tmp_path / "adapter"], tmp_path / "out.safetensors")
    layer = trained.model.base_model.model.layer.get_base_layer()
    merged = load_file(tmp_path / "out.safetensors")
    layer.load_state_dict({key.removeprefix("layer."): value for key, value in merged.items()})
    assert torch.allclose(layer(x), before, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "Conv1D", "embedding", "conv2d", "attention"])
def test_several_adapters_are_summed_from_the_unmerged_base(name, tmp_path):
    dora = {} if name == "attention" else {"use_dora": True}
    turned = {"fan_in_fan_out": True} if name == "Conv1D" else {}
    first, second = train(name, **turned, **dora), train(name, r=2, **turned)
    for place, one in (("one", first), ("two", second)):
        one.save(tmp_path / place)
    save_file(first.base, tmp_path / "base.safetensors")
    merge(
        tmp_path / "base.safetensors",
        [tmp_path / "one", tmp_path / "two"],
        tmp_path / "out.safetensors",
        weight=[0.5, -2.0],
    )
    merged = load_file(tmp_path / "out.safetensors")
    alone, other, base = first.merged(safe=False), second.merged(safe=False), first.base
    for key, value in merged.items():
        wanted = base[key] + 0.5 * (alone[key] - base[key]) - 2.0 * (other[key] - base[key])
        assert torch.allclose(value, wanted, atol=1e-5)


@pytest.mark.parametrize("recipe", ["auto", "exact"])
def test_a_zero_row_is_refused_where_dora_divides_by_it(recipe, tmp_path):
    from lora_export.errors import FitError

    trained = train("linear", use_dora=True)
    layer = trained.model.base_model.model.layer
    with torch.no_grad():
        layer.lora_B["default"].weight[7] = 0
    trained.save(tmp_path / "adapter")
    trained.base["layer.weight"][7] = 0
    save_file(trained.base, tmp_path / "base.safetensors")
    with pytest.raises(FitError, match="row 7 of weight and update together is zero"):
        merge(
            tmp_path / "base.safetensors",
            [tmp_path / "adapter"],
            tmp_path / "out.safetensors",
            recipe=recipe,
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_a_cut_dora_weight_has_the_bits_of_the_whole(tmp_path, monkeypatch):
    from lora_export.execution import arithmetic

    trained = train("linear large", "BF16", use_dora=True)
    trained.save(tmp_path / "adapter")
    save_file(trained.base, tmp_path / "base.safetensors")
    monkeypatch.setattr(arithmetic, "BLOCK_BYTES", 257 * 64 * 2)
    report = merge(
        tmp_path / "base.safetensors", [tmp_path / "adapter"], tmp_path / "out.safetensors"
    )
    [step] = report.plan.changed()
    assert len(arithmetic.row_blocks(step)) == 6
    merged = load_file(tmp_path / "out.safetensors")
    assert torch.equal(merged["layer.weight"], trained.merged(safe=False)["layer.weight"])
