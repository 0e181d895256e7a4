"""Trained rows that PEFT writes under two names, of which the configuration has one."""

import pytest
import torch
from peft import LoraConfig
from peft_folders import llama, logits, reloaded, save
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_export.api import merge
from lora_export.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"


def written_twice(folder, *, tokens, resize=None):
    config = LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": tokens}
    )
    options = {"save_embedding_layers": True}
    unmerged = save(folder, llama(tied=True), config, resize=resize, save=options)
    assert ROWS in load_file(folder / "lora" / "adapter_model.safetensors")
    return unmerged


@pytest.mark.parametrize(("tokens", "resize"), [([5, 7, 3], None), ([60, 62, 3], 63)])
def test_a_tied_head_has_the_rows_of_its_table(tokens, resize, tmp_path):
    unmerged = written_twice(tmp_path, tokens=tokens, resize=resize)
    merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    found = reloaded(tmp_path / "out", AutoModelForCausalLM)
    vocabulary = resize or 60
    assert (logits(found, vocabulary) - logits(unmerged(), vocabulary)).abs().max() < 1e-5
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_other_rows_of_a_head_that_nobody_names_are_refused(tmp_path):
    written_twice(tmp_path, tokens=[5, 7, 3])
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, ROWS: torch.flip(tensors[ROWS], [0])}, path)
    with pytest.raises(InputError, match=r"names no tokens .* other rows than model\.embed_tokens"):
        merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
