"""What people saw with adapters of PEFT, their configurations, and their names."""

from __future__ import annotations

import json
from copy import deepcopy

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from lora_export.api import merge
from lora_export.errors import FitError, InputError, LoraExportError
from public_reports.report import Report

_PREFIX = "base_model.model."


def _network(**layers):
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"a": torch.nn.Linear(8, 6), "b": torch.nn.Linear(8, 8), **layers})


def _save(folder, network, config, *, name="lora", seed=1):
    """Base and trained adapter in `folder`; the adapted network, on top of a network of its own."""
    save_file(network.state_dict(), folder / "base.safetensors")
    adapted = peft.get_peft_model(deepcopy(network), config)
    draw = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=draw) * 0.2
    adapted.save_pretrained(folder / name)
    return adapted


def _merged(folder, *names, **options):
    adapters = [folder / name for name in names or ("lora",)]
    merge(folder / "base.safetensors", adapters, folder / "out.safetensors", **options)
    return load_file(folder / "out.safetensors")


def _has_the_bits_of(adapted, found):
    expected = adapted.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def _rewrite(folder, change, **config):
    path = folder / "lora" / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    path = folder / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def _is_refused(folder, error, words):
    with pytest.raises(LoraExportError, match=words) as caught:
        _merged(folder)
    assert type(caught.value) is error
    assert not (folder / "out.safetensors").exists()


def _two_patterns(folder):
    patterns = {"rank_pattern": {"[ab]": 3}, "alpha_pattern": {"b": 30}}
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["a", "b"], **patterns)
    _has_the_bits_of(_save(folder, _network(), config), _merged(folder))


def _dora_on_conv1d(folder):
    config = peft.LoraConfig(r=2, target_modules=["c"], use_dora=True, fan_in_fan_out=True)
    adapted = _save(folder, _network(c=Conv1D(12, 8)), config)
    _has_the_bits_of(adapted, _merged(folder))


def _transposed_in_the_file(folder):
    adapted = _save(folder, _network(), peft.LoraConfig(r=2, target_modules=["a"]))
    _rewrite(folder, dict, fan_in_fan_out=True)
    _has_the_bits_of(adapted, _merged(folder))


def _adalora(folder):
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["a", "b"])
    adapted = _save(folder, _network(), config)
    found = _merged(folder)
    assert not torch.equal(found["b.weight"], load_file(folder / "base.safetensors")["b.weight"])
    _has_the_bits_of(adapted, found)


def _compiled(folder):
    adapted = _save(folder, _network(), peft.LoraConfig(r=2, target_modules=["a", "b"]))
    _rewrite(folder, lambda state: {f"_orig_mod.{name}": t for name, t in state.items()})
    _has_the_bits_of(adapted, _merged(folder))


def _compiled_base(folder):
    adapted = _save(folder, _network(), peft.LoraConfig(r=2, target_modules=["a", "b"]))
    path = folder / "base.safetensors"
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(path).items()}, path)
    found = {name.removeprefix("_orig_mod."): tensor for name, tensor in _merged(folder).items()}
    _has_the_bits_of(adapted, found)


def _empty_factors(folder):
    _save(folder, _network(), peft.LoraConfig(r=2, target_modules=["a", "b"]))
    _rewrite(folder, lambda state: {name: torch.zeros(0) for name in state})
    with pytest.raises((FitError, InputError), match=r"ZeRO-3|\[0\]"):
        _merged(folder)
    assert not (folder / "out.safetensors").exists()


def _empty_head(folder):
    config = peft.LoraConfig(r=2, target_modules=["a"], modules_to_save=["b"])
    _save(folder, _network(), config)

    def emptied(state):
        return {name: torch.zeros(0) if ".b." in name else t for name, t in state.items()}

    _rewrite(folder, emptied)
    with pytest.raises((FitError, InputError), match=r"ZeRO-3|\[0\]"):
        _merged(folder)
    assert not (folder / "out.safetensors").exists()


def _pissa(folder):
    config = peft.LoraConfig(r=2, target_modules=["a", "b"], init_lora_weights="pissa")
    _save(folder, _network(), config)
    _is_refused(folder, InputError, "(?i)pissa")


def _untrained(folder):
    save_file(_network().state_dict(), folder / "base.safetensors")
    adapted = peft.get_peft_model(_network(), peft.LoraConfig(r=2, target_modules=["a", "b"]))
    adapted.save_pretrained(folder / "lora")
    _is_refused(folder, FitError, "lora_B is all zero")


def _depthwise(folder):
    """PEFT trains it, and its merge fails on the shape of the weight."""
    network = _network(conv=torch.nn.Conv1d(8, 8, 4, groups=8))
    save_file(network.state_dict(), folder / "base.safetensors")
    (folder / "lora").mkdir()
    factors = {"lora_A.weight": torch.ones(2, 8, 4), "lora_B.weight": torch.ones(8, 2, 1)}
    state = {f"{_PREFIX}conv.{name}": tensor for name, tensor in factors.items()}
    save_file(state, folder / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["conv"]}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(config))
    _is_refused(folder, FitError, r"fit no layer with a weight \[8, 1, 4\]")


def _two_doras(folder):
    """PEFT's forward scales the first one's output by the second one, so their order matters."""
    config = peft.LoraConfig(r=2, target_modules=["b"], use_dora=True)
    base = _network()["b"].weight.detach()
    alone = [_save(folder, _network(), deepcopy(config))]
    alone.append(_save(folder, _network(), deepcopy(config), name="other", seed=2))
    weights = [adapted.merge_and_unload()["b"].weight.detach() for adapted in alone]
    found = _merged(folder, "lora", "other")["b.weight"]
    torch.testing.assert_close(found, base + sum(weight - base for weight in weights))
    (folder / "out.safetensors").unlink()
    (folder / "out.safetensors.lora_export.json").unlink()
    torch.testing.assert_close(_merged(folder, "other", "lora")["b.weight"], found)


REPORTS = [
    Report(
        "huggingface/peft", 2194,
        "rank_pattern and alpha_pattern with different keys: one of them was not applied",
        "each pattern is matched for itself, and the bits are PEFT's of today",
        _two_patterns,
    ),
    Report(
        "huggingface/peft", 1588,
        "DoRA on GPT-2's Conv1D took the norm over the wrong side, and its merge failed",
        "the merge has the bits of PEFT's fixed one", _dora_on_conv1d,
    ),
    Report(
        "huggingface/peft", 324,
        "one target module set fan_in_fan_out, though it is an nn.Linear",
        "the shape decides, whatever the configuration says", _transposed_in_the_file,
    ),
    Report(
        "huggingface/peft", 2322,
        "a merge of AdaLoRA seemed to give the base's weights back",
        "the weights change, and have the bits of PEFT's merge", _adalora,
    ),
    Report(
        "MakazhanAlpamys/Soup", 335,
        "every key had torch.compile's prefix; PEFT loaded none, and warned only",
        "the prefix comes off, and the update is merged", _compiled,
    ),
    Report(
        "karpathy/nanoGPT", 325,
        "a checkpoint of a compiled model has _orig_mod. before every name",
        "an adapter of the plain model is merged into it", _compiled_base,
    ),
    Report(
        "huggingface/peft", 2500,
        "an adapter that was saved under ZeRO-3 holds factors of size 0",
        "it is refused, and nothing is written", _empty_factors,
    ),
    Report(
        "huggingface/peft", 2450,
        "a module of modules_to_save was saved under ZeRO-3 with size 0",
        "it is refused, and nothing is written", _empty_head,
    ),
    Report(
        "huggingface/peft", 1929,
        "an adapter of PiSSA merged into the model that it did not start from",
        "it is refused until it is converted to a LoRA", _pissa,
    ),
    Report(
        "huggingface/peft", 577,
        "a model answered as if nothing had been trained",
        "factors that change nothing are refused", _untrained,
    ),
    Report(
        "tiiuae/Falcon-H1", 13,
        "a LoRA on the depthwise convolution of a Mamba layer could not be merged by PEFT",
        "it is refused with the shapes", _depthwise,
    ),
    Report(
        "huggingface/peft", 3608,
        "two merged DoRA adapters on one module are not the unmerged model",
        "the merge adds up what each does alone, in any order", _two_doras,
    ),
]  # fmt: skip
