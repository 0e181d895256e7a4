"""Tied tensors of Transformers models: what is separated, and what config.json says of it."""

import json

import pytest
import torch
from peft_folders import bert, llama, save
from safetensors.torch import load_file

from lora_export.api import merge
from lora_export.errors import FitError
from lora_export.planning import make_plan

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILY = ["T5", "LongT5", "MT5", "SwitchTransformers", "UMT5"]
SIZES = {
    "vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
# What has other defaults than one layer: 12 layers of 8 experts, an attention to 127 neighbours.
SMALL = {
    "SwitchTransformers": {"num_decoder_layers": 1, "num_experts": 2},
    "LongT5": {"local_radius": 4},
}
IDS = {"input_ids": torch.arange(3, 12)[None], "decoder_input_ids": torch.arange(5, 9)[None]}


def logits(model):
    with torch.no_grad():
        return model.eval()(**IDS).logits


def seq2seq(family, **config):
    import transformers

    torch.manual_seed(0)
    configuration = getattr(transformers, f"{family}Config")(
        **SIZES, **SMALL.get(family, {}), **config
    )
    return getattr(transformers, f"{family}ForConditionalGeneration")(configuration)


def lora(**settings):
    from peft import LoraConfig

    return LoraConfig(r=2, **settings)


def auto(task):
    """Return transformers' class that loads models of this task."""
    import transformers

    return getattr(transformers, f"AutoModelFor{task}")


def merged(folder):
    merge(folder / "base", [folder / "lora"], folder / "out")
    return auto("Seq2SeqLM").from_pretrained(folder / "out", dtype=torch.float32)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("target", "whole"), [("lm_head", False), ("shared", True)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("family", FAMILY)
def test_outputs_are_scaled_where_the_base_scales_them(family, scaled, whole, target, tmp_path):
    modules = ["q"] if whole else ["q", target]
    config = lora(target_modules=modules, modules_to_save=[target] if whole else None)
    model = seq2seq(family, tie_word_embeddings=scaled)
    unmerged = save(tmp_path, model, config, auto=auto("Seq2SeqLM"))
    torch.testing.assert_close(logits(merged(tmp_path)), logits(unmerged()), atol=1e-4, rtol=1e-4)
    assert config_of(tmp_path / "out") == config_of(tmp_path / "base")


def test_a_table_that_the_model_never_calls_is_refused(tmp_path):
    """In transformers 5 T5's encoder and decoder have tables of their own, tied to `shared`."""
    config = lora(target_modules=["q", "shared"])
    save(tmp_path, seq2seq("T5"), config, auto=auto("Seq2SeqLM"))
    with pytest.raises(FitError, match="never calls this module"):
        merged(tmp_path)


@pytest.mark.parametrize("says", [True, False])
def test_a_head_stored_with_other_values_is_tied_to_nothing(says, tmp_path):
    config = lora(target_modules=["q", "lm_head"])
    model = seq2seq("T5")
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    unmerged = save(tmp_path, model, config, auto=auto("Seq2SeqLM"))
    said = config_of(tmp_path / "base")
    del said["scale_decoder_outputs"]
    said["tie_word_embeddings"] = says
    (tmp_path / "base" / "config.json").write_text(json.dumps(said))
    assert "lm_head.weight" in load_file(tmp_path / "base" / "model.safetensors")
    torch.testing.assert_close(logits(merged(tmp_path)), logits(unmerged()), atol=1e-4, rtol=1e-4)
    assert config_of(tmp_path / "out") == said


def masked(name):
    import transformers

    if name == "BertForMaskedLM":
        return bert(name)
    sizes = {**MASKED, "embedding_size": 16} if name.startswith("Albert") else MASKED
    torch.manual_seed(0)
    model = getattr(transformers, name)
    return model(model.config_class(**sizes))


MASKED = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
HEADS = {
    "BertForMaskedLM": "predictions",
    "RobertaForMaskedLM": "lm_head",
    "AlbertForMaskedLM": "predictions",
}


def saved_head(folder, name):
    config = lora(target_modules=["query"], modules_to_save=[HEADS[name]])
    return save(folder, masked(name), config, auto=auto("MaskedLM"))


@pytest.mark.parametrize("name", HEADS)
def test_a_second_tie_keeps_the_value_that_the_adapter_gave_it(name, tmp_path):
    unmerged = saved_head(tmp_path, name)
    merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    ids = {"input_ids": IDS["input_ids"]}
    found = auto("MaskedLM").from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(**ids).logits, unmerged()(**ids).logits)
    adapter = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    whole = {key.removeprefix("base_model.model."): value for key, value in adapter.items()}
    whole = {key: value for key, value in whole.items() if "lora_" not in key}
    assert sum(key.endswith("decoder.bias") for key in whole) == 1
    assert all(torch.equal(written[key], value) for key, value in whole.items())


def test_a_plan_that_loses_a_full_tensor_is_refused(tmp_path, monkeypatch):
    def forgetful(given, changes, edits, findings):
        tied = plan_ties(given, changes, edits, findings)
        name = next(name for name in changes.added if name.endswith("decoder.bias"))
        changes.added[name] = given.tensor(name)
        return tied

    plan_ties = make_plan.plan_ties
    monkeypatch.setattr(make_plan, "plan_ties", forgetful)
    saved_head(tmp_path, "BertForMaskedLM")
    with pytest.raises(FitError, match=r"would hold another .*decoder\.bias than the adapter"):
        merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")


def test_a_grown_table_is_named_once(tmp_path):
    config = lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    save(tmp_path, llama(tied=True), config, resize=63, save={"save_embedding_layers": True})
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", dry_run=True)
    told = next(c for c in report.plan.choices if c.startswith("the vocabulary grows"))
    assert told == "the vocabulary grows from 60 to 63 tokens: model.embed_tokens.weight"


def test_several_names_are_untied(tmp_path):
    save(tmp_path, seq2seq("T5"), lora(target_modules=["shared"]))
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", dry_run=True)
    told = next(choice for choice in report.plan.choices if "untied" in choice)
    assert " are untied from shared.weight and written separately" in told
