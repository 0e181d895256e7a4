"""verify of merges that PEFT itself wrote: right ones pass, and the recipe they follow is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lora_export.api import merge, verify
from lora_export.errors import VerificationError
from lora_export.report.document import report_json

pytestmark = pytest.mark.filterwarnings("ignore:::peft.*", "ignore:`is_gradient_checkpointing`")
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
}  # fmt: skip
MODULES = ["q_proj", "v_proj"]


class Place:
    """A tiny base, an adapter, and merges of them by PEFT."""

    def __init__(self, root, dtype=torch.float32, targets=MODULES, *, tied=False):
        self.root, self.dtype = root, dtype
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES, tie_word_embeddings=tied, pad_token_id=0)
        LlamaForCausalLM(config).to(dtype).save_pretrained(root / "base")
        model = get_peft_model(self.base(), LoraConfig(r=4, target_modules=targets))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(root / "lora")
        (root / "base" / "tokenizer.json").write_text("{}")

    def base(self):
        return LlamaForCausalLM.from_pretrained(self.root / "base", dtype=self.dtype)

    def peft(self, model=None):
        return PeftModel.from_pretrained(model or self.base(), self.root / "lora")

    def save(self, model, **options):
        model.save_pretrained(self.root / "merged", **options)

    def verify(self, **options):
        return verify(
            self.root / "merged", base=self.root / "base", adapters=[self.root / "lora"], **options
        )


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def half(tmp_path):
    return Place(tmp_path, torch.bfloat16)


def test_a_right_merge_passes_and_what_it_lacks_is_a_note(place):
    place.save(place.peft().merge_and_unload())
    report = place.verify()
    assert report.passed
    assert report.plan.recipe == "auto"
    (note,) = [told for told in report.warnings if "missing here" in told]
    assert note.startswith("tokenizer.json: missing here")


def test_another_tokenizer_is_a_note(place):
    place.save(place.peft().merge_and_unload())
    (place.root / "merged" / "tokenizer.json").write_text('{"a": 1}')
    assert any(told.startswith("tokenizer.json: not the pl") for told in place.verify().warnings)


def test_our_own_merge_may_lack_nothing(place):
    merge(place.root / "base", [place.root / "lora"], place.root / "merged")
    (place.root / "merged" / "tokenizer.json").unlink()
    with pytest.raises(VerificationError, match="digests"):
        place.verify()


def test_other_shards_than_the_base_has(place):
    place.save(place.peft().merge_and_unload(), max_shard_size="6KB")
    assert (place.root / "merged" / "model.safetensors.index.json").is_file()
    assert place.verify().passed


def test_a_configuration_of_another_version_means_the_same(place):
    place.save(place.peft().merge_and_unload())
    file = place.root / "merged" / "config.json"
    config = json.loads(file.read_text())
    config["transformers_version"] = "4.30.0"
    assert config.pop("use_cache") is True  # the default
    file.write_text(json.dumps(config))
    assert place.verify().passed
    file.write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(VerificationError, match="side files") as caught:
        place.verify()
    assert caught.value.problems[0].where == "config.json"


def test_a_configuration_with_an_infinite_number_means_the_same(place):
    """transformers 5 writes it as an object, and as another text than the base may have."""
    path = place.root / "base" / "config.json"
    config = {**json.loads(path.read_text()), "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    path.write_text(json.dumps(config))
    place.save(place.peft().merge_and_unload())
    assert '"__float__"' in (place.root / "merged" / "config.json").read_text()
    assert place.verify().passed


def test_a_configuration_that_transformers_does_not_take_fails(place):
    place.save(place.peft().merge_and_unload())
    path = place.root / "merged" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": "many"}))
    with pytest.raises(VerificationError, match=r"config\.json"):
        place.verify()


def test_a_stray_weight_file_fails(place):
    place.save(place.peft().merge_and_unload())
    shutil.copy(place.root / "base" / "model.safetensors", place.root / "merged" / "x.safetensors")
    with pytest.raises(VerificationError, match="side files"):
        place.verify()


def test_safe_merge_passes_and_is_named(half):
    half.save(half.peft().merge_and_unload(safe_merge=True))
    report = half.verify()
    assert report.passed
    assert report_json(report)["plan"]["recipe"] == "peft-safe"
    assert any("it follows --recipe peft-safe" in told for told in report.warnings)
    assert half.verify(tied="eval").plan.recipe == "peft-safe"  # nothing is tied


@pytest.mark.parametrize("recipe", ["auto", "exact"])
def test_a_recipe_that_was_asked_for_and_is_not_followed_fails(half, recipe):
    half.save(half.peft().merge_and_unload(safe_merge=True))
    with pytest.raises(VerificationError) as caught:
        half.verify(recipe=recipe)
    (problem,) = caught.value.problems
    (finding,) = caught.value.findings
    assert finding.code == "other-recipe"
    assert "it follows --recipe peft-safe (PEFT's merge with safe_merge=True)" in problem.hint


def test_a_sum_that_is_rounded_once_is_within_the_default_recipe(half):
    merge(
        half.root / "base", [half.root / "lora"], half.root / "merged", recipe="exact", verify=False
    )
    (half.root / "merged" / "lora_export.json").unlink()
    assert half.verify().plan.recipe == "auto"


def test_tied_tables_that_change_together_are_told_truly(tmp_path):
    """The library's merge gives other outputs than the unmerged model: no pass without a word."""
    place = Place(tmp_path, targets=["q_proj", "embed_tokens"], tied=True)
    place.save(place.peft().merge_and_unload())
    with pytest.raises(VerificationError) as caught:
        place.verify()
    hint = caught.value.problems[0].hint
    assert [finding.code for finding in caught.value.findings] == ["other-recipe"]
    assert "it follows --tied eval" in caught.value.findings[0].message
    assert hint.startswith("it follows --tied eval; name that to accept it: model.embed_tokens")
    assert "the outputs differ from the unmerged model's" in hint
    report = place.verify(tied="eval")
    assert report.passed
    assert any("change together" in told for told in report.warnings)


def _twice(place):
    return place.peft(place.peft().merge_and_unload()).merge_and_unload()


def _scaled(place):
    model = place.peft()
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 0.5
    return model.merge_and_unload()


def _without_one(place):
    merged, base = place.peft().merge_and_unload(), place.base()
    value = base.model.layers[1].self_attn.v_proj.weight.data
    merged.model.layers[1].self_attn.v_proj.weight.data.copy_(value)
    return merged


WRONG = {
    "twice": (_twice, "every target holds the update 2 times: merged more than once"),
    "not at all": (Place.base, "no tensor holds the update: nothing was merged"),
    "scaling": (_scaled, "every target holds 0.5 of the update: another alpha"),
    "one module": (_without_one, "1 of 4 targets were not merged: model.layers.1.self_attn.v_"),
    "half": (lambda place: place.peft().merge_and_unload().half(), "21 stored as F16, where F32"),
}


@pytest.mark.parametrize(("make", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_merges_fail_with_a_sentence_that_says_why(place, make, expected):
    place.save(make(place))
    with pytest.raises(VerificationError) as caught:
        place.verify()
    assert any(expected in problem.message for problem in caught.value.problems)
    assert not any("follows" in problem.hint for problem in caught.value.problems)


def test_tensors_that_are_missing_or_new_are_named(place):
    place.save(place.peft().merge_and_unload())
    file = place.root / "merged" / "model.safetensors"
    tensors = load_file(file)
    tensors["new.weight"] = tensors.pop("model.norm.weight").reshape(2, 8)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.contiguous()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(VerificationError) as caught:
        place.verify()
    message = caught.value.problems[0].message
    for told in (
        "1 missing: model.norm.weight",
        "1 not planned: new.weight",
        "1 of another shape: lm_head.weight",
    ):
        assert told in message
