"""What the report lets the models say, held against PEFT's own model and transformers' generate."""

from __future__ import annotations

import peft_folders
import pytest
import torch
from peft import LoraConfig

import lora_export
from lora_export.verification.model import sample_texts
from lora_export.verification.model.sample_texts import GAPS, NEW_TOKENS, TEXTS

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

WORDS = ["<pad>", "<mask>", "<unk>", "</s>"]


def tokenizer(folder):
    """Write a tokenizer of whole words, with 60 tokens as the models have."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = dict.fromkeys([*WORDS, *" ".join([*TEXTS, *GAPS]).replace("{}", "").split()])
    names = [*known, *(f"word{n}" for n in range(60))][:60]
    found = Tokenizer(models.WordLevel({n: at for at, n in enumerate(names)}, unk_token="<unk>"))  # noqa: S106
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=found, **special)
    made.save_pretrained(folder)
    return made


def made(tmp_path, model, targets, **settings):
    """Merge with a report; return the samples, the tokenizer, and PEFT's unmerged model."""
    unmerged = peft_folders.save(tmp_path, model, LoraConfig(r=2, target_modules=targets))
    words = tokenizer(tmp_path / "base")
    report = lora_export.merge(
        tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", report=tmp_path / "r.html",
        **settings,
    )  # fmt: skip
    return report, words, unmerged()


def continued(model, words, text):
    ids = words(text, return_tensors="pt").input_ids
    with torch.no_grad():
        found = model.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return words.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_decoder_continues_three_texts_as_transformers_does(tmp_path):
    report, words, unmerged = made(tmp_path, peft_folders.llama(), ["q_proj", "up_proj"])
    rows = report.facts["samples"]["rows"]
    assert [row["input"] for row in rows] == list(TEXTS)
    with unmerged.disable_adapter():
        assert [row["base"] for row in rows] == [continued(unmerged, words, t) for t in TEXTS]
    expected = [continued(unmerged, words, text) for text in TEXTS]
    assert [row["unmerged"] for row in rows] == expected
    assert [row["merged"] for row in rows] == expected
    assert any(row["base"] != row["merged"] for row in rows)
    assert rows[0]["merged"].split()[0] in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("name", "texts"),
    [("BertForMaskedLM", [text.format("<mask>") for text in GAPS]),
     ("BertForSequenceClassification", list(TEXTS))],
)  # fmt: skip
def test_an_encoder_gives_its_most_likely_answers(tmp_path, name, texts):
    report, words, unmerged = made(tmp_path, peft_folders.bert(name), ["query", "value"])
    rows = report.facts["samples"]["rows"]
    assert [row["input"] for row in rows] == texts
    for row in rows:
        given = words(row["input"], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            logits = unmerged(**given).logits[0]
        if name == "BertForMaskedLM":
            logits = logits[given.input_ids[0] == words.mask_token_id][0]
        share, best = torch.softmax(logits, -1).max(-1)
        label = repr(words.decode([best])) if "Masked" in name else f"LABEL_{best}"
        assert row["unmerged"].split(", ")[0] == f"{label} {share:.1%}"
        assert row["merged"] == row["unmerged"]
    assert any(row["base"] != row["merged"] for row in rows)


def test_without_a_report_nothing_is_said(tmp_path):
    peft_folders.save(tmp_path, peft_folders.llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    tokenizer(tmp_path / "base")
    report = lora_export.merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    assert "samples" not in report.facts


def test_a_folder_without_a_tokenizer_has_no_samples(tmp_path):
    peft_folders.save(tmp_path, peft_folders.llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    report = lora_export.merge(
        tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", report=tmp_path / "r.html"
    )
    assert "samples" not in report.facts
    assert "What the models say" not in (tmp_path / "r.html").read_text()


def test_a_broken_tokenizer_fails_no_merge(tmp_path):
    peft_folders.save(tmp_path, peft_folders.llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    tokenizer(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    report = lora_export.merge(
        tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", report=tmp_path / "r.html"
    )
    assert report.passed
    assert report.facts["samples"]["why"]
    assert "Not shown: " in (tmp_path / "r.html").read_text()


def test_a_model_that_does_not_fit_into_memory_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_texts, "available_memory", lambda: 1000)
    report, _, _ = made(tmp_path, peft_folders.llama(), ["q_proj"])
    assert "are available" in report.facts["samples"]["why"]
    assert report.passed
