"""Merges of PEFT's layers that are a little wrong are caught by the proof of the weights alone."""

import pytest
import torch
from peft_layers import train, write_factory
from safetensors.torch import load_file, save_file

from lora_export.api import merge, verify
from lora_export.errors import VerificationError


def layer_of(trained):
    inner = trained.model.base_model.model
    return inner.attn if hasattr(inner, "attn") else inner.layer


def scale_by(factor):
    def plant(trained):
        layer = layer_of(trained)
        layer.scaling["default"] *= factor
        if hasattr(layer.get_base_layer(), "out_proj"):
            layer.get_base_layer().out_proj.scaling["default"] *= factor

    return plant


def one_magnitude(trained):
    with torch.no_grad():
        layer_of(trained).lora_magnitude_vector["default"].weight.flatten()[3] *= 1.005


def magnitudes_shifted(trained):
    weight = layer_of(trained).lora_magnitude_vector["default"].weight
    weight.data = weight.data.flatten().roll(1).view(weight.shape)


def drop_rank(trained):
    layer = layer_of(trained)
    for table in (layer.lora_A, layer.lora_embedding_A):
        for one in table.values():
            getattr(one, "weight", one).data[0] = 0


def forget(key, times=0):
    """The tensor as it is in the base, or with its update several times."""

    def plant(merged, base):
        merged[key] = base[key] + (merged[key] - base[key]) * times

    return plant


def transpose_kernel(merged, _):
    merged["layer.weight"] = merged["layer.weight"].transpose(-1, -2).contiguous()


DORA = {"use_dora": True}
TURNED = {"fan_in_fan_out": True}
FACTORS = {"0.5 % more": scale_by(1.005), "0.5 % less": scale_by(0.995), "rank": drop_rank}
MAGNITUDES = {"one magnitude": one_magnitude, "magnitudes shifted": magnitudes_shifted}
PLANTED = [
    *(("linear large", {}, fault) for fault in FACTORS),
    *(("linear large", DORA, fault) for fault in (*FACTORS, *MAGNITUDES)),
    *(("Conv1D large", {**DORA, **TURNED}, fault) for fault in (*FACTORS, *MAGNITUDES)),
    *(("embedding large", DORA, fault) for fault in (*FACTORS, *MAGNITUDES)),
    *(("conv2d large", {}, fault) for fault in FACTORS),
    *(("conv2d large", DORA, fault) for fault in (*FACTORS, *MAGNITUDES)),
    *(("attention", {}, fault) for fault in FACTORS),
    ("linear large", {"lora_bias": True}, "0.5 % more"),
]


def told(value):
    return "+".join(value) if isinstance(value, dict) else value


def refused(folder, trained, state, **facts):
    trained.save(folder / "adapter")
    save_file(trained.base, folder / "base.safetensors")
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "wrong.safetensors")
    with pytest.raises(VerificationError):
        verify(
            folder / "wrong.safetensors",
            base=folder / "base.safetensors",
            adapters=[folder / "adapter"],
            **facts,
        )


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("name", "settings", "fault"), PLANTED, ids=told)
def test_a_fault_of_the_arithmetic_is_caught(name, settings, fault, dtype, tmp_path):
    right, wrong = train(name, dtype, **settings), train(name, dtype, **settings)
    {**FACTORS, **MAGNITUDES}[fault](wrong)
    refused(tmp_path, right, wrong.merged(safe=False))


@pytest.mark.parametrize(
    ("name", "settings", "plant"),
    [
        ("linear", {"lora_bias": True}, forget("layer.bias")),
        ("linear", {"lora_bias": True}, forget("layer.bias", 2)),
        ("linear", DORA, forget("layer.weight")),
        ("Conv1D square", {**DORA, **TURNED}, transpose_kernel),
        ("conv2d", {}, transpose_kernel),
        ("conv2d", DORA, forget("layer.weight", 2)),
        ("attention", {}, forget("attn.out_proj.weight", 0.5)),
        ("attention", {}, forget("attn.in_proj_weight", 2)),
    ],
    ids=told,
)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_fault_of_a_tensor_is_caught(name, settings, plant, dtype, tmp_path):
    right = train(name, dtype, **settings)
    state = train(name, dtype, **settings).merged(safe=False)
    plant(state, right.base)
    refused(tmp_path, right, state, **(TURNED if name == "Conv1D square" else {}))


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("name", ["linear large", "embedding large", "conv2d large", "attention"])
def test_a_small_update_is_proven_as_well(name, dtype, tmp_path):
    """Of a hundredth of the weight, as training makes them."""
    dora = {} if name == "attention" else DORA
    right, wrong = (train(name, dtype, lora_alpha=0.2, **dora) for _ in range(2))
    scale_by(1.02)(wrong)
    refused(tmp_path, right, wrong.merged(safe=False))
    merge(tmp_path / "base.safetensors", [tmp_path / "adapter"], tmp_path / "out.safetensors")
    merged, wanted = load_file(tmp_path / "out.safetensors"), right.merged(safe=False)
    assert [key for key in merged if not torch.equal(merged[key], wanted[key])] == []


MODELS = ["linear", "Conv1D", "embedding", "conv1d", "conv2d oblong", "conv3d", "attention"]


@pytest.mark.parametrize("settings", [{}, DORA, {"lora_bias": True}], ids=told)
@pytest.mark.parametrize("name", MODELS)
def test_the_live_branch_is_the_merged_layer(name, settings, tmp_path):
    if (name == "attention" and settings) or (name == "embedding" and "lora_bias" in settings):
        pytest.skip("PEFT has no such layer")
    settings = {**settings, **TURNED} if name == "Conv1D" else settings
    trained = train(name, **settings)
    trained.save(tmp_path / "adapter")
    save_file(trained.base, tmp_path / "base.safetensors")
    report = merge(
        tmp_path / "base.safetensors",
        [tmp_path / "adapter"],
        tmp_path / "out.safetensors",
        model=write_factory(tmp_path, name),
    )
    assert "merged = unmerged (torch)" in {check.name for check in report.checks}
