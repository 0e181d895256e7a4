"""Every layer kind is complete: a row with its oracle, an independent formula, a live branch."""

import pytest
import torch
from loralib_models import KINDS, layer
from peft_layers import LAYERS, train
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.layers import all_kinds
from lora_export.verification.kinds import all_proofs

LORALIB = {"conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "merged": "merged_linear"}
PEFT = {
    # kind: a layer of tests/peft_layers.py, how it is trained
    "linear": ("linear", {}),
    "embedding": ("embedding", {}),
    "peft_conv": ("conv2d", {}),
    "lora_bias": ("linear", {"lora_bias": True}),
    "dora_linear": ("linear", {"use_dora": True}),
    "dora_embedding": ("embedding", {"use_dora": True}),
    "dora_conv": ("conv2d", {"use_dora": True}),
    "attention_in": ("attention", {}),
    "attention_out": ("attention", {}),
}

PEFT_ELSEWHERE = {
    "adalora",
    "loha",
    "lokr",
    "vera",
    "ia3",
    "ia3_feedforward",
    "experts",
    "token_rows",
}
"""Held against PEFT in tests/execution/test_peft_tuners.py and tests/layers/test_experts.py."""

LITGPT = {"linear", "litgpt_qkv"}
"""Held against litgpt's merge in tests/api/test_litgpt.py."""


def test_every_kind_has_a_row_and_every_row_a_kind():
    rows = {LORALIB.get(kind.split()[0], kind.split()[0]) for kind in KINDS}
    by_tuner = {name: kind.tuners for name, kind in all_kinds().items()}
    assert rows == {name for name, tuners in by_tuner.items() if "loralib" in tuners}
    others = {"loralib", "litgpt"}
    assert {*PEFT, *PEFT_ELSEWHERE} == {n for n, tuners in by_tuner.items() if tuners - others}
    assert {name for name, tuners in by_tuner.items() if "litgpt" in tuners} == LITGPT


@pytest.mark.parametrize("kind", PEFT)
def test_every_row_of_peft_is_read_as_its_kind(kind, tmp_path):
    name, settings = PEFT[kind]
    trained = train(name, **settings)
    trained.save(tmp_path / "adapter")
    save_file(trained.base, tmp_path / "base.safetensors")
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter"
    plan = merge(base, [adapter], tmp_path / "out.safetensors", dry_run=True).plan
    assert kind in {delta.kind for step in plan.changed() for delta in step.deltas}
    assert name == "attention" or name in LAYERS


def test_every_kind_has_an_independent_formula_and_a_live_branch():
    proofs = all_proofs()
    assert set(proofs) == set(all_kinds())
    for proof in proofs.values():
        assert (proof.formula is None) != (proof.change is None)
        assert proof.tangent is None or proof.change is not None
        assert proof.sides is None or proof.formula is not None
        assert (proof.live_output is None) != (proof.live_parameter is None)


def test_every_row_is_a_layer_of_loralib():
    for kind in KINDS:
        module = layer(kind, 2)
        assert type(module).__module__ == "loralib.layers"
        assert isinstance(module.lora_A, torch.nn.Parameter)
