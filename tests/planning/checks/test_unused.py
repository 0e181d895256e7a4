"""An option that fits nothing is a mistake, and it is named."""

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.errors import FitError, UsageError

BASE = {"fc.weight": torch.ones(6, 5), "g.weight": torch.ones(9, 5), "head.g": torch.ones(4)}
ADAPTER = {
    "fc.lora_A": torch.ones(2, 5),
    "fc.lora_B": torch.ones(6, 2),
    "head.g": torch.ones(4) * 2,
}
BLOCKS = {"g.lora_A": torch.ones(4, 5), "g.lora_B": torch.ones(6, 2)}


@pytest.fixture
def plan(tmp_path):
    def make(adapter=ADAPTER, hparams=None, **settings):
        save_file(BASE, tmp_path / "b.safetensors")
        save_file(adapter, tmp_path / "l.safetensors")
        if hparams:
            (tmp_path / "facts.toml").write_text(hparams)
            settings["hparams"] = tmp_path / "facts.toml"
        settings = {"alpha": 4.0, **settings}
        return merge(
            tmp_path / "b.safetensors", [tmp_path / "l.safetensors"], dry_run=True, **settings
        ).plan

    return make


REFUSED = [
    ({"allow_unmatched": ["zzz*"]}, ["--allow-unmatched", "'zzz*'"]),
    ({"allow_unmatched": ["head.*", "zzz*"]}, ["'zzz*'"]),
    ({"allow_new": ["qq*"]}, ["--allow-new", "'qq*'"]),
    ({"allow_new": ["fc.lora_A"]}, ["--allow-new", "full tensor"]),
    ({"allow_new": ["qq*"], "allow_unmatched": ["zzz*"]}, ["--allow-new", "--allow-unmatched"]),
    ({"enable_lora": "1,0,1"}, ["--enable-lora", "no MergedLinear", "linear"]),
    ({"hparams": "enable_lora = [1, 0, 1]"}, ["--enable-lora", "no MergedLinear"]),
    ({"hparams": '[[module]]\nmatch = "*fcc"\nalpha = 4'}, ["[[module]]", "'*fcc'"]),
    (
        {"alpha": None, "hparams": '[[module]]\nmatch = "*fcc"\nalpha = 4'},
        ["'*fcc'", "alpha is not in the file"],
    ),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_an_option_that_fits_nothing_is_refused(settings, words, plan):
    with pytest.raises(UsageError) as caught:
        plan(**settings)
    assert [word for word in words if word not in str(caught.value)] == []


ACCEPTED = [
    {"allow_unmatched": ["head.*"]},
    {"allow_unmatched": ["*.g"], "allow_new": ["head.?"]},
    {"enable_lora": "1"},  # a MergedLinear of one block is a Linear
    {"enable_lora": "1,0,1", "adapter": {**ADAPTER, **BLOCKS}},
    {"hparams": '[[module]]\nmatch = "fc"\nalpha = 4\n[[module]]\nmatch = "*"\nalpha = 8'},
]


@pytest.mark.parametrize("settings", ACCEPTED)
def test_what_fits_something_is_accepted(settings, plan):
    assert plan(**settings).changed()


def test_modules_that_were_not_asked_for_are_no_ground(plan):
    adapter = {f"x.{name}": tensor for name, tensor in ADAPTER.items()}
    adapter |= {f"y.{name}": tensor.clone() for name, tensor in ADAPTER.items()}
    with pytest.raises(FitError) as caught:
        plan(adapter, hparams='[[module]]\nmatch = "fc"\nalpha = 4', enable_lora="1,0,1")
    assert "[[module]]" not in str(caught.value)
    assert "MergedLinear" not in str(caught.value)


def test_what_is_left_out_is_told(plan):
    made = plan({**ADAPTER, **BLOCKS}, allow_unmatched=["g.*", "head.*"])
    assert "3 tensors" in made.warnings[0]
    assert "g.lora_A, g.lora_B, head.g" in made.warnings[0]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_another_name_of_the_same_tensor_is_told(prefix, plan):
    adapter = {name: tensor for name, tensor in ADAPTER.items() if name != "head.g"}
    adapter = {f"{prefix}{k}": v for k, v in {**adapter, "head.weight": torch.zeros(4)}.items()}
    assert f"{prefix}head.weight: the base calls it head.g" in plan(adapter).choices
    assert not any("calls it" in choice for choice in plan().choices)
