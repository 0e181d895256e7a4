"""What people saw with tables, heads and their configuration after a merge."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from peft import LoraConfig
from peft_folders import bert, llama, logits, reloaded, save
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import FitError
from public_reports.report import Report

_EMBED = "model.embed_tokens.weight"


def _lora(*modules, **settings):
    return LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", *modules], **settings)


def _save(folder, *what, **options):
    """As peft_folders.save; PEFT warns of resized tables and of ties, which these are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        unmerged = save(folder, *what, **options)

    def quiet():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return unmerged()

    return quiet


def _equals_the_unmerged_model(folder, unmerged, auto, vocabulary=60):
    report = merge(folder / "base", [folder / "lora"], folder / "out")
    found = reloaded(folder / "out", auto)
    expected = logits(unmerged(), vocabulary)
    assert (logits(found, vocabulary) - expected).abs().max() < 1e-5
    assert "merged = unmerged (torch)" in {check.name for check in report.checks}
    return found


def _tied_head_adapted(folder):
    model = llama(tied=True)
    unmerged = _save(folder, model, _lora("lm_head"))
    found = _equals_the_unmerged_model(folder, unmerged, type(model))
    base = load_file(folder / "base" / "model.safetensors")
    assert torch.equal(found.state_dict()[_EMBED], base[_EMBED])


def _tied_and_grown(folder):
    model = llama(tied=True)
    config = _lora(modules_to_save=["embed_tokens", "lm_head"])
    unmerged = _save(folder, model, config, resize=64)
    found = _equals_the_unmerged_model(folder, unmerged, type(model), 64)
    assert found.config.tie_word_embeddings is False


def _added_tokens(folder):
    model = llama()
    unmerged = _save(folder, model, _lora(), resize=64)
    found = _equals_the_unmerged_model(folder, unmerged, type(model), 64)
    assert found.config.vocab_size == 64


def _cut(folder):
    model = llama()
    config = _lora(modules_to_save=["embed_tokens", "lm_head"])
    unmerged = _save(folder, model, config, resize=50)
    found = _equals_the_unmerged_model(folder, unmerged, type(model), 50)
    assert found.config.vocab_size == 50


def _half_of_a_cut_vocabulary(folder):
    config = _lora(modules_to_save=["embed_tokens", "lm_head"])
    _save(folder, llama(), config, resize=50)
    path = folder / "lora" / "adapter_model.safetensors"
    state = load_file(path)
    save_file({name: t for name, t in state.items() if "lm_head" not in name}, path)
    with pytest.raises(FitError, match=r"rows of lm_head\.weight that are left"):
        merge(folder / "base", [folder / "lora"], folder / "out")


def _reward_head(folder):
    auto = transformers.AutoModelForSequenceClassification
    config = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"])
    load = {"num_labels": 1, "pad_token_id": 0}
    unmerged = _save(folder, llama(), config, auto=auto, **load)
    merge(folder / "base", [folder / "lora"], folder / "out", allow_new=["score.*"])
    found = reloaded(folder / "out", auto)
    assert (logits(found) - logits(unmerged())).abs().max() < 1e-5


def _classifier_is_the_trained_one(folder):
    auto = transformers.AutoModelForSequenceClassification
    config = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"])
    unmerged = _save(folder, bert("BertModel"), config, auto=auto, num_labels=3)
    found = _equals_the_unmerged_model(folder, unmerged, auto)
    assert found.config.num_labels == 3


def _shared_storage(folder):
    """torch.save keeps both names of a tied tensor; safetensors refuses to."""
    model = llama(tied=True)
    unmerged = _save(folder, model, _lora())
    (folder / "base" / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "base" / "pytorch_model.bin")
    _equals_the_unmerged_model(folder, unmerged, type(model))


REPORTS = [
    Report(
        "huggingface/peft", 2018,
        "an adapter of the head was merged into the table that is tied to it",
        "the head is written apart, and the table stays", _tied_head_adapted,
    ),
    Report(
        "huggingface/transformers", 45127,
        "a merged model with new tokens and a tied table repeated one token for ever",
        "config.json unties the two, so both are loaded as trained", _tied_and_grown,
    ),
    Report(
        "unslothai/unsloth", 237,
        "an adapter with new tokens did not load: its tables have other sizes",
        "the tables are replaced, and vocab_size is edited", _added_tokens,
    ),
    Report(
        "axolotl-ai-cloud/axolotl", 2277,
        "resize_token_embeddings cut a padded table, and nothing could merge the adapter",
        "both whole tables are in the file, so the result is determined", _cut,
    ),
    Report(
        "huggingface/autotrain-advanced", 790,
        "sizes of the table and of the adapter's differ after training",
        "a cut table without its head is refused", _half_of_a_cut_vocabulary,
    ),
    Report(
        "huggingface/trl", 297,
        "a reward model on a causal base lost its head in the merge",
        "the head is merged, with or without --allow-new", _reward_head,
    ),
    Report(
        "huggingface/peft", 2289,
        "classification heads of merged models differed, drawn anew at each loading",
        "the trained head is in the merged model", _classifier_is_the_trained_one,
    ),
    Report(
        "hiyouga/LlamaFactory", 3238,
        "a merged model could not be saved: some tensors share memory",
        "a base that stores one tensor under two names is merged", _shared_storage,
    ),
]  # fmt: skip
