"""A vocabulary that training cut: resize_token_embeddings(len(tokenizer)) of a padded table."""

import json
import re

import pytest
import torch
from peft import LoraConfig
from peft_folders import llama, logits, reloaded, save
from safetensors.torch import load_file, save_file

from lora_export.api import merge, unmerge, verify
from lora_export.errors import FitError

pytestmark = pytest.mark.filterwarnings("ignore")

CUT = 50  # of 60
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def lora(*modules, **settings):
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", *modules], **settings)


# name -> (configuration, whether PEFT's own merge of a tied model is the unmerged one)
CASES = {
    "both whole": (lora(modules_to_save=["embed_tokens", "lm_head"]), True),
    "copies of both": (lora(), True),
    "both adapted": (lora("embed_tokens", "lm_head"), False),
    "rows": (lora(trainable_token_indices=[1, 49]), True),
}


def edit(path, **members):
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_is_merged(case, tied, tmp_path):
    config, is_right_in_peft = CASES[case]
    model = llama(tied=tied)
    unmerged = save(tmp_path, model, config, resize=CUT)
    undo = tmp_path / "undo.safetensors"
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", undo=undo)
    assert any(check.name == "merged = unmerged (torch)" for check in report.checks)
    assert f"the vocabulary is cut from 60 to {CUT} tokens" in " ".join(report.plan.choices)
    found = reloaded(tmp_path / "out", type(model))
    assert found.config.vocab_size == CUT
    assert logits(found, CUT).shape[-1] == CUT
    assert (logits(found, CUT) - logits(unmerged(), CUT)).abs().max() < 1e-5
    if is_right_in_peft or not tied:
        expected = unmerged().merge_and_unload().state_dict()
        merged = load_file(tmp_path / "out" / "model.safetensors")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    assert verify(tmp_path / "out", base=tmp_path / "base", adapters=[tmp_path / "lora"]).passed
    unmerge(tmp_path / "out", tmp_path / "again", undo=undo)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


def only_head(state):
    return {key: tensor for key, tensor in state.items() if "embed_tokens" not in key}


def only_table(state):
    return {key: tensor for key, tensor in state.items() if "lm_head" not in key}


def other_head(state):
    return {key: t[:40].clone() if "lm_head" in key else t for key, t in state.items()}


def other_copy(state):
    return {key: t + 1 if "embed_tokens.base_layer" in key else t for key, t in state.items()}


def not_gathered(state):
    return {key: t[:0].clone() if "lora_" not in key else t for key, t in state.items()}


def not_gathered_in_zero3(state):
    return {key: t.new_empty(0) if "lora_" not in key else t for key, t in state.items()}


def narrower(state):
    return {key: t[:, 1:].clone() if "lora_" not in key else t for key, t in state.items()}


def single_numbers(state):
    return {key: t.sum() if "lora_" not in key else t for key, t in state.items()}


BOTH = lora(modules_to_save=["embed_tokens", "lm_head"])
REFUSED = {
    # name -> (configuration, change of the adapter's tensors, of config.json, words)
    "the head alone": (BOTH, only_head, {}, f"rows of {EMBED} that are left are not in the file"),
    "the table alone": (BOTH, only_table, {}, f"rows of {HEAD} that are left are not in the file"),
    "cut in two ways": (BOTH, other_head, {}, "resized in several ways: 60 to 40, 60 to 50"),
    "empty tables": (BOTH, not_gathered, {}, r"has shape \[0, 32\], the base's"),
    "empty tables of ZeRO-3": (BOTH, not_gathered_in_zero3, {}, "ZeRO-3 leaves empty tensors"),
    "tables of another width": (BOTH, narrower, {}, r"has shape \[50, 31\], the base's"),
    "single numbers": (BOTH, single_numbers, {}, r"has shape \[\], the base's"),
    "another base": (
        lora("embed_tokens", "lm_head"),
        other_copy,
        {},
        "is a copy .* of another base",
    ),
    "a padding token that is cut": (BOTH, dict, {"pad_token_id": 55}, "pad_token_id is 55, and"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_determined_is_refused(case, tmp_path):
    config, change, members, words = REFUSED[case]
    save(tmp_path, llama(), config, resize=CUT)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    edit(tmp_path / "base" / "config.json", **members)
    with pytest.raises(FitError, match=words):
        merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")


def words_of(*ids):
    vocabulary = {f"word{number}": number for number in ids[:1]}
    added = [{"id": number, "content": f"<{number}>"} for number in ids[1:]]
    return json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}, "added_tokens": added})


UNIGRAM = json.dumps({"model": {"type": "Unigram", "vocab": [["a", -1.0]] * 51}})
TOKENIZERS = {
    # name -> (the base's tokenizer files, the adapter's, what is told)
    "none": ({}, {}, ""),
    "the base's fits": ({"tokenizer.json": words_of(49)}, {}, ""),
    "the adapter's fits": (
        {"tokenizer.json": words_of(49, 59)}, {"tokenizer.json": words_of(48, 49)}, ""
    ),
    "an added token is cut": (
        {"tokenizer.json": words_of(49, 59)}, {}, "tokens up to 59: one above 49 fails"
    ),
    "a token of the adapter's is cut": (
        {"tokenizer.json": words_of(49)}, {"tokenizer.json": words_of(51)}, "tokens up to 51"
    ),
    "a piece is cut": ({"tokenizer.json": UNIGRAM}, {}, "tokens up to 50"),
    "not known": ({"spiece.model": "x"}, {}, r"\(spiece\.model\) is not known"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_may_give_a_cut_token_is_told(case, tmp_path):
    own, theirs, words = TOKENIZERS[case]
    save(tmp_path, llama(), BOTH, resize=CUT)
    for folder, files in (("base", own), ("lora", theirs)):
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    plan = merge(tmp_path / "base", [tmp_path / "lora"], dry_run=True).plan
    told = [text for text in plan.warnings if "vocabulary is cut" in text]
    assert len(told) == bool(words)
    assert all(re.search(words, text) for text in told)
    if theirs:
        (file,) = (file for file in plan.side_files if file.name == "tokenizer.json")
        assert file.source == tmp_path / "lora" / "tokenizer.json"
        assert "its vocabulary is smaller than the base's" in " ".join(plan.choices)


def test_other_tokens_that_are_cut_are_told(tmp_path):
    save(tmp_path, llama(), BOTH, resize=CUT)
    edit(tmp_path / "base" / "config.json", eos_token_id=[2, 58], image_token_index=99)
    path = tmp_path / "base" / "generation_config.json"
    path.write_text('{"eos_token_id": 58, "pad_token_id": 59, "bos_token_id": 1}')
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    told = sorted(text for text in report.plan.warnings if "names tokens that" in text)
    assert told[0].endswith(f"that the result with its {CUT} tokens lacks: eos_token_id 58")
    assert told[1].startswith("generation_config.json names")
    assert told[1].endswith(": eos_token_id 58, pad_token_id 59")
    assert len(told) == 2
