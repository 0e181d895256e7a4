"""Whole tensors, grown vocabularies, trained rows, ties and replicated layers of PEFT adapters."""

import json

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig
from peft_folders import SIZES, bert, llama, logits, reloaded, save
from safetensors.torch import load_file, save_file
from whole_run.sampling import sampled_proofs

from lora_export.api import merge, unmerge
from lora_export.errors import FitError, InputError, LoraExportError, VerificationError

pytestmark = pytest.mark.filterwarnings("ignore")

HALVES = [torch.bfloat16, torch.float16]
Q = {"r": 4, "target_modules": ["q_proj"]}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def lora(**settings):
    return LoraConfig(task_type="CAUSAL_LM", **{**Q, **settings})


def targets(*modules, **settings):
    return lora(target_modules=["q_proj", *modules], **settings)


# name -> (configuration, resized vocabulary, options of save_pretrained)
CASES = {
    "table": (targets("embed_tokens"), None, {}),
    "head": (targets("lm_head"), None, {}),
    "table and head": (targets("embed_tokens", "lm_head"), None, {}),
    "tied by PEFT": (targets("embed_tokens", ensure_weight_tying=True), None, {}),
    "own table": (lora(modules_to_save=["embed_tokens"]), None, {}),
    "own head": (lora(modules_to_save=["lm_head"]), None, {}),
    "own both": (lora(modules_to_save=["embed_tokens", "lm_head"]), None, {}),
    "own, tied": (lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True), None, {}),
    "plain copies": (lora(), None, {"save_embedding_layers": True}),
    "rows": (lora(trainable_token_indices=[1, 5]), None, {}),
    "rows by module": (
        lora(trainable_token_indices={"embed_tokens": [1, 5], "lm_head": [2, 3]}), None, {}
    ),
    "rows of the head": (lora(trainable_token_indices={"lm_head": [1, 5]}), None, {}),
    "grown": (lora(), 64, {}),
    "grown, both adapted": (targets("embed_tokens", "lm_head"), 64, {}),
    "grown, own": (lora(modules_to_save=["embed_tokens", "lm_head"]), 64, {}),
    "grown, rows": (lora(trainable_token_indices=[1, 61]), 64, {}),
}  # fmt: skip
# PEFT merges into the shared parameter, which changes the other name as well.
WRONG_IN_PEFT = {"table", "head", "table and head", "tied by PEFT", "rows by module",
                 "rows of the head", "grown, both adapted"}  # fmt: skip


@sampled_proofs
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_unmerged_model_and_to_pefts_bits(case, tied, is_proven, tmp_path):
    config, resize, options = CASES[case]
    model = llama(tied=tied)
    unmerged = save(tmp_path, model, config, resize=resize, save=options)
    report = merge(
        tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", undo=tmp_path / "undo.safetensors"
    )

    live = logits(unmerged())
    found = reloaded(tmp_path / "out", type(model))
    assert (logits(found) - live).abs().max() < 1e-5
    names = {check.name for check in report.checks}
    assert ("merged = unmerged (torch)" in names) is is_proven
    if not (tied and case in WRONG_IN_PEFT):
        expected = unmerged().merge_and_unload().state_dict()
        merged = load_file(tmp_path / "out" / "model.safetensors")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    unmerge(tmp_path / "out", tmp_path / "again", undo=tmp_path / "undo.safetensors")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


@sampled_proofs
@pytest.mark.usefixtures("is_proven")
@pytest.mark.parametrize("recipe", ["auto", "peft-safe", "exact"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", ["own both", "rows", "grown, both adapted", "grown, rows"])
def test_half_precision(case, dtype, recipe, tmp_path):
    config, resize, options = CASES[case]
    unmerged = save(tmp_path, llama(), config, dtype=dtype, resize=resize, save=options)
    merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", recipe=recipe)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    if recipe != "exact":
        safe = recipe == "peft-safe"
        expected = unmerged().merge_and_unload(safe_merge=safe).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())


@sampled_proofs
@pytest.mark.usefixtures("is_proven")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_tied_eval_gives_pefts_bits(modules, dtype, tmp_path):
    unmerged = save(tmp_path, llama(tied=True), targets(*modules), dtype=dtype)
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", tied="eval")
    expected = unmerged().merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert HEAD not in merged
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    assert report.plan.coupled


@pytest.mark.parametrize("kind", [None, TrainableTokensConfig])
def test_rows_alone_are_an_adapter(kind, tmp_path):
    settings = {"task_type": "CAUSAL_LM", "token_indices": [7, 3]}
    config = TrainableTokensConfig(**settings, target_modules=["embed_tokens"] if kind else None)
    unmerged = save(tmp_path, llama(tied=True), config)
    adapter = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    key = next(key for key in adapter if key.endswith("embed_tokens.trainable_tokens_delta"))
    adapter = {name: rows + 1 for name, rows in adapter.items()}
    save_file(adapter, tmp_path / "lora" / "adapter_model.safetensors")
    merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged[EMBED][[7, 3]], adapter[key])
    assert torch.equal(merged[EMBED], unmerged().merge_and_unload().state_dict()[EMBED])


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("base", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
@pytest.mark.parametrize("with_transformers", [True, False])
def test_heads(base, labels, task, with_transformers, tmp_path, monkeypatch):
    import transformers

    if not with_transformers:
        for place in ("models.hf.huggingface", "models.choose"):
            monkeypatch.setattr(f"lora_export.{place}.transformers_installed", lambda: False)
    suffix = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification"}[task]
    auto = getattr(transformers, f"AutoModelFor{suffix}")
    config = LoraConfig(r=4, task_type=task, target_modules=["query"])
    load = {"num_labels": labels, "ignore_mismatched_sizes": True}
    unmerged = save(tmp_path, bert(base), config, auto=auto, **load)
    if base == "BertForMaskedLM" and task == "SEQ_CLS":  # its pooler was drawn, and is nowhere
        if with_transformers:
            with pytest.raises(VerificationError, match="pooler"):
                merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
        return
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    found = reloaded(tmp_path / "out", auto)
    assert type(found).__name__ == f"BertFor{suffix}"
    assert found.config.num_labels == labels
    assert f"AutoModelFor{suffix}" in (tmp_path / "out" / "README.md").read_text()
    assert (logits(found) - logits(unmerged())).abs().max() < 1e-5
    names = {check.name for check in report.checks}
    assert ("merged = unmerged (torch)" in names) is with_transformers


def test_a_new_classifier_of_images_needs_no_task(tmp_path):
    import transformers

    sizes = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = transformers.ViTConfig(**sizes, intermediate_size=48, image_size=16, patch_size=8)
    auto = transformers.AutoModelForImageClassification
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["classifier"])
    unmerged = save(tmp_path, transformers.ViTModel(config), lora, auto=auto, num_labels=5)
    merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    found = reloaded(tmp_path / "out", auto)
    assert type(found).__name__ == "ViTForImageClassification"
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        one, other = (model.eval()(pixels).logits for model in (found, unmerged()))
    assert (one - other).abs().max() < 1e-5


def test_a_new_classifier_of_a_model_with_several_needs_a_task(tmp_path):
    import transformers

    auto = transformers.AutoModelForTokenClassification
    lora = LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"])
    save(tmp_path, bert("BertModel"), lora, auto=auto)
    with pytest.raises(FitError, match="are new, and BertModel has no place for them"):
        merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases(bias, dtype, tmp_path):
    config = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["query"], bias=bias)
    unmerged = save(tmp_path, bert(), config, dtype=dtype)
    merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    expected = unmerged().merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())


def rewritten(folder, change, **config):
    """The adapter with other keys, as older versions of PEFT wrote them."""
    path = folder / "lora" / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    path = folder / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


@pytest.mark.parametrize("form", ["modules_to_save.", "modules_to_save.default."])
@pytest.mark.parametrize("original", [False, True])
def test_old_forms_of_a_saved_module(form, original, tmp_path):
    config = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["query"])
    unmerged = save(tmp_path, bert(), config)
    expected = logits(unmerged())

    def change(state):
        old = {key.replace("classifier.", f"classifier.{form}"): t for key, t in state.items()}
        zero = {"base_model.model.classifier.original_module.weight": torch.zeros(2, 32)}
        return {**old, **(zero if original else {})}

    rewritten(tmp_path, change, modules_to_save=None)
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    found = reloaded(tmp_path / "out", type(bert()))
    assert (logits(found) - expected).abs().max() < 1e-5
    assert any("takes no part" in choice for choice in report.plan.choices) is original


@pytest.mark.large_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [[[0, 2], [1, 3]], [[1, 3], [0, 2]], [[2, 3], [0, 1]]])
def test_replicated_layers_become_layers_of_their_own(layers, dtype, tmp_path):
    """PEFT's own merge adds every copy's update to the weight that all copies share."""
    config = lora(target_modules=["q_proj", "up_proj"], layer_replication=layers)
    unmerged = save(tmp_path, llama(layers=3), config, dtype=dtype)
    undo = tmp_path / "undo.safetensors"
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", undo=undo)
    found = reloaded(tmp_path / "out", type(llama()), dtype)
    count = sum(end - first for first, end in layers)
    assert found.config.num_hidden_layers == len(found.model.layers) == count
    assert (logits(found) - logits(unmerged())).abs().max() < (1e-5 if dtype.itemsize > 2 else 0.1)
    before = " before rounding" if dtype == torch.bfloat16 else ""
    name = f"merged{before} = unmerged (torch)"
    assert any(check.name == name for check in report.checks)
    base = load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    order = [layer for first, end in layers for layer in range(first, end)]
    for place, layer in enumerate(order):
        norm = "input_layernorm.weight"
        assert torch.equal(
            merged[f"model.layers.{place}.{norm}"], base[f"model.layers.{layer}.{norm}"]
        )
    unmerge(tmp_path / "out", tmp_path / "again", undo=undo)
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "base" / "model.safetensors").read_bytes()


def smaller(state):
    key = f"base_model.model.{EMBED.replace('.weight', '.base_layer.weight')}"
    return {**state, key: state[key][:50].clone()}


def other_copy(state):
    key = f"base_model.model.{EMBED.replace('.weight', '.base_layer.weight')}"
    return {**state, key: state[key] + 1}


def no_head(state):
    return {key: tensor for key, tensor in state.items() if "lm_head" not in key}


def only_original(state):
    return {**state, "base_model.model.lm_head.original_module.weight": torch.zeros(60, 32)}


REFUSED = {
    # name -> (configuration, vocabulary, change of tensors, of configuration, error, words)
    "a smaller copy": (targets("embed_tokens"), None, smaller, {}, FitError, "fit no layer with"),
    "another base": (
        targets("embed_tokens"), None, other_copy, {}, FitError, "of this one has other values",
    ),
    "rows unknown": (targets("embed_tokens", "lm_head"), 64, no_head, {}, FitError, "drawn when"),
    "original alone": (lora(), None, only_original, {}, InputError, "untrained module"),
    "no indices": (
        lora(trainable_token_indices=[1]), None, dict,
        {"trainable_token_indices": None}, InputError, "names no tokens",
    ),
    "indices twice": (
        lora(trainable_token_indices=[1, 2]), None, dict,
        {"trainable_token_indices": [1, 1]}, InputError, "twice",
    ),
    "other count": (
        lora(trainable_token_indices=[1, 2]), None, dict,
        {"trainable_token_indices": [1, 2, 3]}, InputError, "3 tokens",
    ),
    "token too large": (
        lora(trainable_token_indices=[1, 2]), None, dict,
        {"trainable_token_indices": [1, 60]}, FitError, "not among the 60 rows",
    ),
    "hostile layers": (
        lora(), None, dict, {"layer_replication": [[0, 10**9]]}, InputError, "more than",
    ),
    "odd layers": (lora(), None, dict, {"layer_replication": [[0]]}, InputError, "no list of"),
    "layers too many": (lora(), None, dict, {"layer_replication": [[0, 3]]}, FitError, "2 layers"),
    "modules_to_save a number": (lora(), None, dict, {"modules_to_save": 3}, InputError, "list"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    config, resize, change, settings, error, words = REFUSED[case]
    save(tmp_path, llama(), config, resize=resize)
    rewritten(tmp_path, change, **settings)
    with pytest.raises(LoraExportError, match=words) as caught:
        merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    assert type(caught.value) is error
    assert not (tmp_path / "out").exists()
