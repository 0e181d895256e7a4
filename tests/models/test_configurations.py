"""config.json as the versions of transformers write it, through merge, edits and model proof."""

import json

import pytest
import torch
import transformers as tr
from peft import LoraConfig
from peft_folders import logits, reloaded, save

from lora_export.api import merge

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MAMBA = {
    "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
}  # fmt: skip


def falcon(**settings):
    sizes = {**TEXT, **TOKENS, **MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4}
    return tr.FalconH1Config(**sizes, num_hidden_layers=1, **settings)


HYBRIDS = {
    "FalconH1": falcon,
    "Mamba2": lambda: tr.Mamba2Config(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_heads=8, head_dim=8,
        state_size=8, n_groups=1, chunk_size=8, **TOKENS,
    ),
    "Bamba": lambda: tr.BambaConfig(
        **TEXT, **TOKENS, **MAMBA, mamba_n_heads=8, num_hidden_layers=2, attn_layer_indices=[1]
    ),
    "GraniteMoeHybrid": lambda: tr.GraniteMoeHybridConfig(
        **TEXT, **TOKENS, **MAMBA, mamba_n_heads=8, num_hidden_layers=2,
        layer_types=["mamba", "attention"], num_local_experts=2, num_experts_per_tok=1,
        shared_intermediate_size=48,
    ),
    "NemotronH": lambda: tr.NemotronHConfig(
        **TEXT, **TOKENS, layers_block_type=["mamba", "attention"], mamba_num_heads=8,
        mamba_head_dim=8, ssm_state_size=8, n_groups=1, chunk_size=8,
    ),
}  # fmt: skip


def is_proven(report):
    return "merged = unmerged (torch)" in {check.name for check in report.checks}


def untag(folder):
    """config.json as transformers 4 wrote it: a JSON of Python's."""
    path = folder / "base" / "config.json"
    config = tr.PreTrainedConfig._dict_from_json_file(path)
    path.write_text(json.dumps(config, indent=2) + "\n")


@pytest.mark.parametrize("name", HYBRIDS)
def test_numbers_that_json_has_not(name, tmp_path):
    torch.manual_seed(0)
    model = getattr(tr, f"{name}ForCausalLM")(HYBRIDS[name]())
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["in_proj"])
    unmerged = save(tmp_path, model, lora)
    assert "__float__" in (tmp_path / "base" / "config.json").read_text()
    assert is_proven(merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out"))
    found = reloaded(tmp_path / "out", type(model))
    assert (logits(found) - logits(unmerged())).abs().max() < 1e-5
    for file in ("base", "out"):
        assert reloaded(tmp_path / file, type(model)).config.time_step_limit[1] == float("inf")


EDITS = {
    # name -> (configuration of the adapter, resized vocabulary, what config.json says then)
    "a larger vocabulary": (
        {"modules_to_save": ["embed_tokens", "lm_head"]}, 64, {"vocab_size": 64}
    ),
    "an untied head": ({"target_modules": ["q_proj", "lm_head"]}, None,
                       {"tie_word_embeddings": False}),
}  # fmt: skip


@pytest.mark.parametrize("form", ["tagged", "as Python writes it"])
@pytest.mark.parametrize("case", EDITS)
def test_an_edit_leaves_them_as_they_are_written(case, form, tmp_path):
    settings, resize, edited = EDITS[case]
    torch.manual_seed(0)
    model = tr.FalconH1ForCausalLM(falcon(tie_word_embeddings=resize is None))
    lora = LoraConfig(
        **{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings}
    )
    unmerged = save(tmp_path, model, lora, resize=resize)
    if form != "tagged":
        untag(tmp_path)
    assert is_proven(merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out"))
    before, after = (
        json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("base", "out")
    )
    assert after == {**before, **edited}
    assert ("__float__" in json.dumps(after)) is (form == "tagged")
    found = reloaded(tmp_path / "out", type(model))
    assert (logits(found) - logits(unmerged())).abs().max() < 1e-5


@pytest.mark.parametrize("form", ["tagged", "as Python writes it"])
def test_a_new_head_leaves_them_as_they_are_written(form, tmp_path):
    """A configuration may hold such a number that its class does not know."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in TEXT.items() if key != "head_dim"}
    model = tr.LlamaModel(tr.LlamaConfig(**sizes, num_hidden_layers=1, **TOKENS, note=[-torch.inf]))
    auto = tr.AutoModelForSequenceClassification
    lora = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj"])
    unmerged = save(tmp_path, model, lora, auto=auto, num_labels=3)
    if form != "tagged":
        untag(tmp_path)
    assert is_proven(merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out"))
    found = reloaded(tmp_path / "out", auto)
    assert found.config.note == [-torch.inf]
    assert (logits(found) - logits(unmerged())).abs().max() < 1e-5
    tag = "__float__" if form == "tagged" else "-Infinity\n"
    assert tag in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("value", ['"many"', "[1, 2]", '{"__float__": "infinite"}'])
def test_what_transformers_cannot_read_is_proven_by_weights(value, tmp_path):
    torch.manual_seed(0)
    model = tr.LlamaModel(tr.LlamaConfig(**{**TEXT, "num_hidden_layers": 1}))
    save(tmp_path, model, LoraConfig(r=4, target_modules=["q_proj"]))
    path = tmp_path / "base" / "config.json"
    number = '"num_hidden_layers": 1'
    path.write_text(path.read_text().replace(number, f'"num_hidden_layers": {value}'))
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    assert not is_proven(report)
    assert "config.json: transformers cannot read it for LlamaModel" in " ".join(report.warnings)
