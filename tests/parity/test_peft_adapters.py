"""What no architecture of the matrix holds: torch's own attention, and two adapters at once."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from peft_matrix.architectures import ARCHITECTURES, DTYPES
from peft_matrix.making import train
from peft_matrix.oracle import Unmerged, run
from safetensors.torch import load_file, save_file
from torch import nn

from lora_export.api import merge

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class Attention(nn.Module):
    """nn.MultiheadAttention holds three projections in one parameter, and a module for the last."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.out = nn.Linear(32, 5)

    def forward(self, x):
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.out(mixed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_attention(dtype, tmp_path):
    """PEFT 0.21 counts out_proj twice, as it runs and as it merges: trained so, it is meant so."""
    torch.manual_seed(0)
    base = Attention().to(DTYPES[dtype])
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["attention", "out"])
    adapted = peft.get_peft_model(copy.deepcopy(base), config)
    train(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    x = torch.randn(2, 7, 32)
    live = adapted.eval().float()(x)

    merge(tmp_path / "base.safetensors", [tmp_path / "adapter"], tmp_path / "out.safetensors")

    ours = load_file(tmp_path / "out.safetensors")
    fresh = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    theirs = fresh.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []
    merged = Attention()
    merged.load_state_dict(ours)
    eps = torch.finfo(DTYPES[dtype]).eps
    assert (merged.eval()(x) - live).abs().max() <= 8 * eps * live.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_adapters(dtype, tmp_path):
    """The sum is rounded once, where PEFT's merge of one after the other rounds twice."""
    architecture = ARCHITECTURES["llama"]
    base = tmp_path / "base"
    architecture.save(DTYPES[dtype], base)
    folders = {name: tmp_path / name for name in ("first", "second")}
    targets = {"first": ["q_proj", "v_proj"], "second": ["q_proj", "down_proj"]}
    for seed, (name, folder) in enumerate(folders.items()):
        model, _ = architecture.load(base)
        config = peft.LoraConfig(r=4 + seed, lora_alpha=7, target_modules=targets[name])
        adapted = peft.get_peft_model(model, config)
        train(adapted, seed)
        adapted.save_pretrained(folder)
    model, _ = architecture.load(base)
    both = peft.PeftModel.from_pretrained(model, folders["first"], adapter_name="first")
    both.load_adapter(folders["second"], adapter_name="second")
    both.base_model.set_adapter(["first", "second"])
    own = run(both, architecture)
    reference = Unmerged(own, run(both, architecture, torch.float64), torch.finfo(model.dtype).eps)

    merge(base, [*folders.values()], tmp_path / "out")

    model, info = architecture.load(tmp_path / "out")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert run(model, architecture).distance(reference.exact) <= reference.tolerance
    alone = run(architecture.load(base)[0], architecture)
    assert alone.distance(reference.exact) > reference.tolerance
