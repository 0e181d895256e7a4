"""A full model in the adapter's place."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.errors import UsageError


def test_a_full_model_as_the_adapter_is_told_with_the_right_order(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file({"m.weight": torch.ones(6, 4)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(UsageError) as caught:
        merge(one, [two], tmp_path / "out")
    assert "a full model (BertModel), not an adapter" in str(caught.value)
    assert f"lora-export merge {two} {one}" in str(caught.value)
