"""Every layer kind is complete: a row with its oracle, an independent formula, a live branch."""

import torch
from loralib_models import KINDS, layer

from lora_export.layers import all_kinds
from lora_export.verification.branches import FORMS
from lora_export.verification.expected import CHANGES, FORMULAS

ROWS = {"conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "merged": "merged_linear"}


def test_every_kind_has_a_row_and_every_row_a_kind():
    rows = {ROWS.get(kind.split()[0], kind.split()[0]) for kind in KINDS}
    by_loralib = {name for name, kind in all_kinds().items() if "loralib" in kind.tuners}
    assert rows == by_loralib


def test_every_kind_has_an_independent_formula_and_a_live_branch():
    assert set(FORMULAS) | set(CHANGES) == set(all_kinds())
    assert set(FORMS) == set(all_kinds())


def test_every_row_is_a_layer_of_loralib():
    for kind in KINDS:
        module = layer(kind, 2)
        assert type(module).__module__ == "loralib.layers"
        assert isinstance(module.lora_A, torch.nn.Parameter)
