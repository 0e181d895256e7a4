"""A folder that transformers can build is a witness, wanted or not; one that it cannot is told."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import FitError, InputError, UsageError, VerificationError
from lora_export.models.hf.huggingface import HuggingFaceModel

MODULE = "transformer.h.0.mlp.c_proj"


@pytest.fixture
def gpt2(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=53, n_positions=32, n_embd=16, n_layer=1, n_head=2,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    return tmp_path


def merged(folder, *, full=None, **options):
    factors = {f"{MODULE}.lora_A": torch.randn(2, 64), f"{MODULE}.lora_B": torch.randn(16, 2)}
    save_file({**factors, **(full or {})}, folder / "lora.safetensors")
    adapters = [folder / "lora.safetensors"]
    return merge(folder / "base", adapters, folder / "out", alpha=4.0, **options)


def names(report):
    return [check.name for check in report.checks]


def test_the_folder_is_a_witness(gpt2):
    report = merged(gpt2)
    assert "merged = unmerged (torch)" in names(report)
    assert not report.warnings


@pytest.mark.parametrize("full", [{"score.weight": torch.ones(2, 16)}])
def test_a_new_tensor_without_a_place_is_refused(full, gpt2):
    with pytest.raises(FitError, match=r"score\.weight: the model has no such parameter"):
        merged(gpt2, full=full, allow_new=["score.*"])


@pytest.mark.parametrize("error", [InputError, FitError])
def test_a_result_that_cannot_be_loaded_is_no_proof(error, gpt2, monkeypatch):
    load = HuggingFaceModel.load

    def fails(model, checkpoint, **options):
        if checkpoint.root.resolve() != (gpt2 / "base").resolve():
            raise error("planted")
        return load(model, checkpoint, **options)

    monkeypatch.setattr(HuggingFaceModel, "load", fails)
    with pytest.raises(VerificationError, match="planted"):
        merged(gpt2)
    assert not (gpt2 / "out").exists()


def test_a_base_that_lacks_a_tensor_is_told(gpt2):
    file = gpt2 / "base" / "model.safetensors"
    tensors = load_file(file)
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    report = merged(gpt2)
    assert "merged = unmerged (torch)" not in names(report)
    assert "ln_f.bias: the checkpoint holds no value for it" in " ".join(report.warnings)


def test_a_tolerance_that_was_asked_for_is_not_left_out(gpt2):
    with pytest.raises(UsageError, match="is no tolerance"):
        merged(gpt2, atol=-1.0)
