"""Every layer kind is merged as its library merges it, and every row has its oracle."""

import pytest
import torch
from kind_rows import BY_LITGPT, BY_LORALIB, ROWS, kind_of
from loralib_models import KINDS, layer
from peft_layers import LAYERS, train
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.layers import all_kinds

LORALIB = {"conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "merged": "merged_linear"}
PEFT = {kind_of(case): row.oracle for case, row in ROWS.items() if isinstance(row.oracle, tuple)}
"""kind: a layer of tests/peft_layers.py, how it is trained."""

PEFT_ELSEWHERE = {
    kind_of(case)
    for case, row in ROWS.items()
    if isinstance(row.oracle, str) and row.oracle not in {BY_LORALIB, BY_LITGPT}
}
"""Held against PEFT in the test files that the rows name."""

LITGPT = {"linear", "litgpt_qkv"}
"""Held against a copy of litgpt's merge in tests/api/adapters/test_litgpt.py."""


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


def test_every_row_is_a_layer_of_loralib():
    for kind in KINDS:
        module = layer(kind, 2)
        assert type(module).__module__ == "loralib.layers"
        assert isinstance(module.lora_A, torch.nn.Parameter)
