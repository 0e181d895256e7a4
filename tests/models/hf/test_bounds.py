"""A config.json that asks for more than its checkpoint explains is refused before it is built."""

import pytest
from torch import nn

from lora_export.errors import LimitError
from lora_export.models.hf import bounds
from lora_export.models.hf.bounds import bound_config, bounded_modules
from lora_export.records import Checkpoint


def base(tmp_path, **config):
    return Checkpoint(tmp_path, "folder", (), config=config)


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10_001},
        {"n_layer": 10**9},
        {"encoder_layers": 10**9},
        {"text_config": {"num_layers": 10**9}},
        {"depths": [2, 10**9]},
        {"num_labels": 500_001},
    ],
)
def test_more_layers_or_labels_than_any_model_has(config, tmp_path):
    with pytest.raises(LimitError, match=r"config\.json: \w+ is above (10|500),000, for 0 tensors"):
        bound_config(base(tmp_path, **config))


def test_other_numbers_may_be_as_large_as_they_are(tmp_path):
    given = {"num_hidden_layers": 10_000, "num_labels": 21_843, "num_block_records": 13_353_718}
    bound_config(base(tmp_path, **given, depths=[2, 2], layer_norm_eps=1e-5, n_layer=None))


def test_a_model_of_too_many_modules_is_not_built_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MODULES", 10)
    built = []
    with (
        pytest.raises(LimitError, match="a model of more than 10 modules, for 0 tensors"),
        bounded_modules(base(tmp_path)),
    ):
        nn.ModuleList(built.append(n) or nn.Sequential(nn.ReLU()) for n in range(1000))
    assert len(built) < 20
    assert len(nn.ModuleList(nn.ReLU() for _ in range(20))) == 20  # the bound is gone
