"""--allow-new allows a new tensor; it does not change what a merge without it does."""

import json

import pytest
import torch
import transformers as tr
from peft import LoraConfig
from peft_folders import SIZES, bert, llama, reloaded, save
from safetensors.torch import load_file, save_file

from lora_export.api import merge
from lora_export.errors import FitError

pytestmark = pytest.mark.filterwarnings("ignore")


def vit():
    torch.manual_seed(0)
    sizes = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return tr.ViTModel(tr.ViTConfig(**sizes, intermediate_size=48, image_size=16, patch_size=8))


# name -> (model, class that was trained, options of its loading, configuration, glob)
HEADS = {
    "a reward head on a causal model": (
        llama, tr.AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0},
        LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj"]), "score.*",
    ),
    "labels of tokens on an encoder": (
        lambda: bert("BertModel"), tr.AutoModelForTokenClassification, {"num_labels": 5},
        LoraConfig(r=4, task_type="TOKEN_CLS", target_modules=["query"]), "classifier.*",
    ),
    "classes of images, no task": (
        vit, tr.AutoModelForImageClassification, {"num_labels": 5},
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["classifier"]), "*",
    ),
}  # fmt: skip


def content(folder):
    """Every file but the manifest and the card, which tell the options."""
    names = sorted(path.name for path in folder.iterdir())
    kept = [name for name in names if name not in {"README.md", "lora_export.json"}]
    return {name: (folder / name).read_bytes() for name in kept}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_needs_no_permission_is_merged_alike(case, dtype, tmp_path):
    model, auto, load, config, glob = HEADS[case]
    save(tmp_path, model(), config, auto=auto, dtype=dtype, **load)
    merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "plain")
    report = merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", allow_new=[glob])
    before = " before rounding" if dtype == torch.bfloat16 else ""
    assert f"merged{before} = unmerged (torch)" in {check.name for check in report.checks}
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    reloaded(tmp_path / "out", auto, dtype)


# name -> (what the file holds of the head, words)
NO_HEADS = {
    "not gathered": (lambda tensor: tensor[:0].clone(), r"has shape \[0, 32\]: it is empty"),
    "not gathered in ZeRO-3": (lambda tensor: tensor.new_empty(0), "ZeRO-3 leaves empty tensors"),
    "a number": (torch.sum, "score.weight: is a single number, and no head"),
}


@pytest.mark.parametrize("settings", [{}, {"allow_new": ["score.*"]}])
@pytest.mark.parametrize("case", NO_HEADS)
def test_a_head_without_its_values_is_refused(case, settings, tmp_path):
    change, words = NO_HEADS[case]
    model, auto, load, config, _ = HEADS["a reward head on a causal model"]
    save(tmp_path, model(), config, auto=auto, **load)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    state = {k: change(t) if "score" in k else t for k, t in load_file(path).items()}
    save_file(state, path)
    with pytest.raises(FitError, match=words):
        merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out", **settings)


def test_a_head_in_a_single_file_is_merged_alike(tmp_path):
    model, auto, load, config, glob = HEADS["a reward head on a causal model"]
    save(tmp_path, model(), config, auto=auto, **load)
    base = tmp_path / "base" / "model.safetensors"
    merge(base, [tmp_path / "lora"], tmp_path / "plain.safetensors")
    merge(base, [tmp_path / "lora"], tmp_path / "out.safetensors", allow_new=[glob])
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("out", "plain")]
    assert files[0] == files[1]


@pytest.mark.parametrize("glob", [None, "classifier.w*", "classifier.*"])
def test_a_head_whose_class_nobody_knows_needs_the_permission(glob, tmp_path):
    """For a network of the user's own, which config.json does not describe."""
    save(
        tmp_path, bert("BertModel"),
        LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"]),
        auto=tr.AutoModelForTokenClassification,
    )  # fmt: skip
    path = tmp_path / "base" / "config.json"
    config = {**json.loads(path.read_text()), "model_type": "mine", "architectures": ["Mine"]}
    path.write_text(json.dumps(config))
    paths = (tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
    if glob != "classifier.*":
        with pytest.raises(FitError, match="has no place for them"):
            merge(*paths, allow_new=[glob] if glob else [])
        return
    merge(*paths, allow_new=[glob])
    assert (tmp_path / "out" / "config.json").read_bytes() == path.read_bytes()
