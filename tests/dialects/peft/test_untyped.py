"""adapter_config.json without peft_type: LORA where nothing else fits, else told truly."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.errors import InputError

BASE = {"q.weight": torch.arange(12.0).reshape(4, 3), "e.weight": torch.ones(5, 3)}
LORA = {
    "base_model.model.q.lora_A.weight": torch.full((2, 3), 0.5),
    "base_model.model.q.lora_B.weight": torch.ones(4, 2),
}
EMBEDDING = {
    "base_model.model.e.lora_embedding_A": torch.full((2, 5), 0.5),
    "base_model.model.e.lora_embedding_B": torch.ones(3, 2),
}
ADALORA = {
    "base_model.model.q.lora_A": torch.ones(2, 3),
    "base_model.model.q.lora_B": torch.ones(4, 2),
    "base_model.model.q.lora_E": torch.ones(2, 1),
}
FACTS = {"r": 2, "lora_alpha": 4, "target_modules": ["q"]}


def plan(folder, tensors, config):
    (folder / "lora").mkdir()
    save_file(BASE, folder / "base.safetensors")
    save_file(tensors, folder / "lora" / "adapter_model.safetensors")
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(config))
    return merge(folder / "base.safetensors", [folder / "lora"], dry_run=True).plan


CERTAIN = {
    "r and alpha": (LORA, FACTS, 2),
    "rslora": (LORA, {**FACTS, "use_rslora": True}, 4 / 2**0.5),
    "null": (LORA, {**FACTS, "peft_type": None}, 2),
    "an embedding": (EMBEDDING, {**FACTS, "target_modules": ["e"]}, 2),
    "a note of the author": (LORA, {**FACTS, "author": "me"}, 2),
}


@pytest.mark.parametrize(("tensors", "config", "scaling"), CERTAIN.values(), ids=CERTAIN)
def test_lora_is_certain(tensors, config, scaling, tmp_path):
    found = plan(tmp_path, tensors, config)
    [delta] = [delta for step in found.steps() for delta in step.deltas]
    assert delta.scaling == scaling
    assert any("has no peft_type" in choice for choice in found.choices)


UNCERTAIN = {
    "no alpha": (LORA, {"r": 2}),
    "no rank": (LORA, {"lora_alpha": 4}),
    "a field of AdaLoRA": (LORA, {**FACTS, "init_r": 12}),
}


@pytest.mark.parametrize(("tensors", "config"), UNCERTAIN.values(), ids=UNCERTAIN)
def test_nothing_is_guessed(tensors, config, tmp_path):
    with pytest.raises(InputError) as caught:
        plan(tmp_path, tensors, config)
    assert "adapter_config.json beside them has no peft_type" in str(caught.value)


def test_another_tuner_is_not_taken_for_lora(tmp_path):
    with pytest.raises(Exception, match="lora_E") as caught:
        plan(tmp_path, ADALORA, FACTS)
    assert "has no peft_type: its fields" not in str(caught.value)
