"""A head replaced in a timm folder; the expected edits are those of timm 1.0.31's save_for_hf."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.errors import FitError

NAMES = [f"n{number}" for number in range(10)]
CONFIG = {
    "architecture": "vit_tiny_patch16_224", "num_classes": 10, "num_features": 8,
    "model_args": {"num_classes": 10, "depth": 1},
    "pretrained_cfg": {"input_size": [3, 224, 224], "num_classes": 10, "classifier": "head"},
}  # fmt: skip


def config(*, without=(), inside=None, **members):
    kept = {key: value for key, value in CONFIG.items() if key not in without}
    return {**kept, **members, "pretrained_cfg": {**CONFIG["pretrained_cfg"], **(inside or {})}}


def head(rows, name="head"):
    return {f"{name}.weight": torch.ones(rows, 8), f"{name}.bias": torch.ones(rows)}


def folders(place, configuration, base, adapter):
    """A timm folder with the head `base`, and an adapter that brings `adapter` whole."""
    for folder in ("base", "lora"):
        (place / folder).mkdir()
    (place / "base" / "config.json").write_text(json.dumps(configuration, indent=2))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    save_file({"qkv.weight": torch.zeros(24, 8), **zeros}, place / "base" / "model.safetensors")
    factors = {"qkv.lora_A.weight": torch.ones(2, 8), "qkv.lora_B.weight": torch.ones(24, 2)}
    state = {f"base_model.model.{name}": t for name, t in {**factors, **adapter}.items()}
    save_file(state, place / "lora" / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[0] for name in adapter})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": modules}
    (place / "lora" / "adapter_config.json").write_text(json.dumps(said))
    return place / "base", [place / "lora"], place / "out"


THREE = {
    "num_classes": 3,
    "model_args": {"num_classes": 3, "depth": 1},
    "pretrained_cfg": {**CONFIG["pretrained_cfg"], "num_classes": 3},
}
CASES = {
    # name -> (config.json, the base's head, the adapter's, what is edited)
    "another number": (config(), head(10), head(3), THREE),
    "the same number": (config(label_names=NAMES), head(10), head(10), {}),
    "names at the top": (
        config(label_names=NAMES, label_descriptions={"n0": "x"}), head(10), head(3),
        {**THREE, "label_names": None, "label_descriptions": None},
    ),
    "names inside": (
        config(inside={"label_names": NAMES}), head(10), head(3),
        {**THREE, "pretrained_cfg": {**THREE["pretrained_cfg"], "label_names": None}},
    ),
    "rows that timm skips": (
        config(inside={"label_offset": 1}), head(11), head(10),
        {"pretrained_cfg": {**CONFIG["pretrained_cfg"], "label_offset": 0}},
    ),
    "no head in the base": (
        config(num_classes=0, model_args={}, inside={"num_classes": 0}), {}, head(3),
        {"num_classes": 3, "pretrained_cfg": THREE["pretrained_cfg"]},
    ),
    "two heads": (
        config(without=["model_args"], inside={"classifier": ["head", "head_dist"]}),
        {**head(10), **head(10, "head_dist")}, {**head(3), **head(3, "head_dist")},
        {
            "num_classes": 3,
            "pretrained_cfg": {**THREE["pretrained_cfg"], "classifier": ["head", "head_dist"]},
        },
    ),
    "a head that is named nowhere": (
        {"architecture": "resnet18", "num_classes": 10}, head(10, "fc"), head(3, "fc"),
        {"num_classes": 3},
    ),
    "the old form": (
        {"architecture": "resnet18", "num_classes": 10, "classifier": "fc", "labels": NAMES},
        head(10, "fc"), head(3, "fc"), {"num_classes": 3, "labels": None},
    ),
    "no number at all": (
        {"architecture": "resnet18", "pretrained_cfg": {"classifier": "fc"}}, head(10, "fc"),
        head(3, "fc"), {"num_classes": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_config_json_has_the_number_of_classes(case, tmp_path):
    before, base, adapter, edited = CASES[case]
    report = merge(*folders(tmp_path, before, base, adapter))
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after == {**before, **edited}
    told = report.plan.edits().get("config.json", ())
    assert bool(told) is bool(edited)
    assert ("num_classes: 3" in told) is ("num_classes" in edited)


REFUSED = {
    "heads of different sizes": (
        config(inside={"classifier": ["head", "head_dist"]}),
        {**head(10), **head(10, "head_dist")}, {**head(3), **head(4, "head_dist")},
        r"different numbers of classes: \[3, 4\]",
    ),
    "a new module that is no head": (
        config(), head(10), head(3, "neck"), "vit_tiny_patch16_224 has no place for it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused(case, tmp_path):
    before, base, adapter, words = REFUSED[case]
    with pytest.raises(FitError, match=words):
        merge(*folders(tmp_path, before, base, adapter))


def test_a_new_module_may_be_allowed(tmp_path):
    paths = folders(tmp_path, config(), head(10), head(3, "neck"))
    report = merge(*paths, allow_new=["neck.*"])
    assert "config.json" not in report.plan.edits()
