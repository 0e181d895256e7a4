"""Where an adapter's file and its configuration disagree: refused, or as the user trusts.

The oracle of --trust-config is PEFT's own merge; of --trust-file, PEFT's with the configuration
that the file was trained with.
"""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_export.api import merge, verify
from lora_export.errors import FitError, InputError, UsageError, VerificationError

PREFIX = "base_model.model."


class Network(nn.Module):
    """Three layers, all of which could be adapted or trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)


def by_peft(folder):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(Network(), folder).merge_and_unload().state_dict()


@pytest.fixture
def saved(tmp_path):
    """Write base and adapter; change the configuration, and add tensors, after training."""
    from peft import LoraConfig, get_peft_model

    def save(members=None, extra=None, **settings):
        save_file(Network().state_dict(), tmp_path / "base.safetensors")
        settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q", "v"], **settings}
        model = get_peft_model(Network(), LoraConfig(**settings))
        draw = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3
        lora = tmp_path / "lora"
        model.save_pretrained(lora)
        as_trained = by_peft(lora)
        config = lora / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **(members or {})}))
        file = lora / "adapter_model.safetensors"
        tensors = {**load_file(file), **{PREFIX + k: v for k, v in (extra or {}).items()}}
        save_file(tensors, file)
        return tmp_path / "base.safetensors", lora, as_trained

    return save


def same(merged, wanted):
    found = load_file(merged)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


CONTESTED = {
    "narrow targets": ({"target_modules": ["q"]}, "target_modules"),
    "an expression": ({"target_modules": r".*q"}, "target_modules"),
    "excluded": ({"exclude_modules": ["v"]}, "exclude_modules"),
}


@pytest.mark.parametrize("name", CONTESTED)
def test_factors_that_the_configuration_leaves_out_are_refused(saved, tmp_path, name):
    members, member = CONTESTED[name]
    base, lora, as_trained = saved(members)
    with pytest.raises(FitError, match=f"{member} in adapter_config.json leaves out") as caught:
        merge(base, [lora], tmp_path / "out.safetensors")
    assert "--trust-config leaves them out; --trust-file merges" in str(caught.value)
    out = merge(base, [lora], tmp_path / "config.safetensors", trust_file=False)
    same(tmp_path / "config.safetensors", by_peft(lora))
    assert [key for key in out.plan.unmatched if ".v." in key] == list(out.plan.unmatched)
    merge(base, [lora], tmp_path / "file.safetensors", trust_file=True)
    same(tmp_path / "file.safetensors", as_trained)
    manifest = json.loads((tmp_path / "config.safetensors.lora_export.json").read_text())
    assert len(manifest["unmatched"]) == 2
    assert manifest["options"]["trust_file"] is False


FULL = {
    "a bias without base_layer": ("q.bias", (6,), {}),
    "a module that is not saved": ("head.modules_to_save.weight", (3, 6), {}),
    "a layer that is not adapted": ("head.base_layer.bias", (3,), {}),
}


@pytest.mark.parametrize("name", FULL)
def test_full_tensors_that_peft_ignores_are_refused(saved, tmp_path, name):
    key, shape, settings = FULL[name]
    base, lora, _ = saved(extra={key: torch.ones(shape)}, **settings)
    with pytest.raises(FitError, match="--trust-file"):
        merge(base, [lora], tmp_path / "out.safetensors")
    merge(base, [lora], tmp_path / "config.safetensors", trust_file=False)
    same(tmp_path / "config.safetensors", by_peft(lora))
    merge(base, [lora], tmp_path / "file.safetensors", trust_file=True)
    found = load_file(tmp_path / "file.safetensors")
    plain = key.replace(".modules_to_save", "").replace(".base_layer", "")
    assert torch.equal(found[plain], torch.ones(shape))


def test_a_full_tensor_that_peft_loads_is_merged(saved, tmp_path):
    base, lora, _ = saved(extra={"head.weight": torch.ones(3, 6)})
    merge(base, [lora], tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", by_peft(lora))


def test_a_bias_of_an_old_peft_is_merged(saved, tmp_path):
    """Before 0.7 there was no base_layer, and the trained bias was q.bias."""
    base, lora, _ = saved({"bias": "lora_only", "peft_version": None}, {"q.bias": torch.ones(6)})
    merge(base, [lora], tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["q.bias"], torch.ones(6))


def test_a_tensor_beside_a_head_of_the_base_is_no_new_head(saved, tmp_path):
    base, lora, _ = saved(extra={"x.head.bias": torch.ones(3)}, modules_to_save=["head"])
    with pytest.raises(FitError, match="the base holds no such tensor"):
        merge(base, [lora], tmp_path / "out.safetensors")


def test_a_module_of_which_the_file_lacks_a_tensor_is_refused(saved, tmp_path):
    base, lora, _ = saved(modules_to_save=["head"])
    file = lora / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.endswith("head.bias")}, file)
    with pytest.raises(FitError, match=r"lacks 1 tensor of modules_to_save: head\.bias"):
        merge(base, [lora], tmp_path / "out.safetensors")


def test_names_of_a_list_may_have_a_prefix_that_the_keys_lack(saved, tmp_path):
    base, lora, as_trained = saved({"target_modules": ["model.q", "model.v"]})
    merge(base, [lora], tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", as_trained)


def test_nothing_is_left_of_another_adapters_configuration(saved, tmp_path):
    base, lora, _ = saved({"target_modules": ["z"]})
    with pytest.raises(FitError, match="leaves out every module"):
        merge(base, [lora], tmp_path / "out.safetensors", trust_file=False)


def test_a_square_weight_of_a_bare_file_may_be_stored_in_two_ways(saved, tmp_path):
    base, lora, as_trained = saved({"fan_in_fan_out": True})
    with pytest.raises(UsageError, match="may be stored in two ways"):
        merge(base, [lora], tmp_path / "out.safetensors")
    merge(base, [lora], tmp_path / "out.safetensors", fan_in_fan_out=False)
    same(tmp_path / "out.safetensors", as_trained)


def test_a_key_that_names_another_adapter_than_the_rest_is_refused(saved, tmp_path):
    base, lora, _ = saved()
    file = lora / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"{PREFIX}q.lora_A.other.weight"] = tensors.pop(f"{PREFIX}q.lora_A.weight")
    save_file(tensors, file)
    with pytest.raises(InputError, match="1 keys name an adapter and 3 do not"):
        merge(base, [lora], tmp_path / "out.safetensors")


@pytest.mark.parametrize("recipe", ["peft", "peft-safe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_float64_factors_are_loaded_as_peft_does(saved, tmp_path, dtype, recipe):
    from peft import PeftModel

    base, lora, _ = saved()
    save_file({k: v.to(dtype) for k, v in load_file(base).items()}, base)
    file = lora / "adapter_model.safetensors"
    save_file({k: v.double() * 1.0000001 for k, v in load_file(file).items()}, file)
    merge(base, [lora], tmp_path / "out.safetensors", recipe=recipe)
    model = PeftModel.from_pretrained(Network().to(dtype), lora)
    wanted = model.merge_and_unload(safe_merge=recipe != "peft").state_dict()
    same(tmp_path / "out.safetensors", wanted)


def test_factors_that_peft_does_not_find_by_their_names_are_refused(saved, tmp_path):
    """loralib's names in a file of PEFT: PEFT loads none of them, and alpha may be another."""
    extra = {"head.lora_A": torch.randn(2, 6), "head.lora_B": torch.randn(3, 2)}
    base, lora, as_trained = saved({"target_modules": ["q", "v", "head"]}, extra)
    assert all(torch.equal(tensor, as_trained[name]) for name, tensor in by_peft(lora).items())
    with pytest.raises(
        InputError, match=r"head\.lora_A: does not end in \.weight, so PEFT ignores"
    ):
        merge(base, [lora], tmp_path / "out.safetensors")


@pytest.mark.parametrize("trust_file", [True, False])
def test_verify_takes_up_what_was_trusted(trust_file, saved, tmp_path):
    base, lora, _ = saved({"target_modules": ["q"]})
    out = tmp_path / "out.safetensors"
    merge(base, [lora], out, trust_file=trust_file)
    again = verify(out, base=base, adapters=[lora])
    assert again.passed
    assert any(f"trust_file {trust_file}: taken from" in line for line in again.warnings)
    with pytest.raises(VerificationError):
        verify(out, base=base, adapters=[lora], trust_file=not trust_file)
