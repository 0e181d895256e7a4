"""The page of a merged folder: the Hub's own reader understands it, and it says what was done."""

import json
import re
from hashlib import sha256

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from safetensors.torch import save_file

from lora_export.api import merge
from lora_export.report.model_card import _front_matter

BASE_CARD = """---
license: apache-2.0
language:
- en
- 'no'
pipeline_tag: text2text-generation
tags:
- conversational
base_model: someone/else
model-index:
- name: x
  results: []
---
# The base's own words
"""

TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8,
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip


@pytest.fixture
def case(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    base.mkdir()
    lora.mkdir()
    save_file({"m.weight": torch.randn(6, 4)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(TINY))
    low = {"m.lora_A": torch.randn(2, 4), "m.lora_B": torch.randn(6, 2)}
    save_file(low, lora / "adapter_model.safetensors")
    trained = {"base_model_name_or_path": "org/base-1B"}
    (lora / "adapter_config.json").write_text(json.dumps(trained))
    return tmp_path


def card(case, *, base_card=None, name="out", adapter="lora", **options):
    if base_card is not None:
        (case / "base" / "README.md").write_text(base_card)
    options = {"alpha": 8, **options}
    report = merge(case / "base", [case / adapter], case / name, **options)
    return ModelCard.load(case / name / "README.md"), report


def test_the_hub_s_own_reader_understands_it(case):
    page, _ = card(case)
    data = page.data.to_dict()
    assert data == {
        "base_model": ["org/base-1B"],
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lora-export", "merged-lora"],
    }
    assert metadata_load(case / "out" / "README.md") == data
    assert ModelCardData(**data).to_dict() == data
    assert yaml.safe_load(str(page.data)) == data


def test_whose_word_the_base_s_name_is(case):
    page, _ = card(case)
    assert "the one in the adapter's configuration" in page.text
    snapshot = case / "models--org--cached" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (case / "base").rename(snapshot)
    (case / "base").mkdir()
    merge(snapshot, [case / "lora"], case / "other", alpha=8)
    text = (case / "other" / "README.md").read_text()
    assert "# org/cached, with" in text
    assert "the one in the adapter's configuration" not in text


def test_the_base_s_metadata_is_kept_and_its_text_is_not(case):
    page, report = card(case, base_card=BASE_CARD)
    data = page.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en", "no"]
    assert data["pipeline_tag"] == "text2text-generation"
    assert data["base_model"] == ["org/base-1B"]
    assert "model-index" not in data
    assert "own words" not in page.text
    manifest = json.loads((case / "out" / "lora_export.json").read_text())
    assert manifest["edits"]["README.md"] == [
        "written anew: the base's own describes the base",
        "kept from the base's metadata: license, language, pipeline_tag",
    ]
    assert report.plan.edits()["README.md"] == tuple(manifest["edits"]["README.md"])


def test_what_is_not_understood_is_told_and_left_out(case):
    page, report = card(case, base_card="---\nlicense: &a mit\nlanguage: en\n---\n")
    assert "license" not in page.data.to_dict()
    assert "not understood in the base's metadata: license" in report.plan.edits()["README.md"]


def test_it_says_what_went_in_and_what_came_out(case):
    page, report = card(case)
    manifest = json.loads((case / "out" / "lora_export.json").read_text())
    for kind in ("base", "adapters"):
        for entry in manifest["inputs"][kind]:
            assert f"| `{entry['name']}` | {entry['bytes']:,} | `{entry['sha256']}` |" in page.text
    for check in report.checks:
        assert f"- {check.name}\n" in page.text
    assert f"{len(report.checks)} checks passed" in page.text
    digest = sha256((case / "out" / "README.md").read_bytes()).hexdigest()
    listed = {entry["name"]: entry["sha256"] for entry in manifest["outputs"]}
    assert listed["README.md"] == digest


def test_an_unverified_merge_claims_nothing(case):
    page, _ = card(case, verify=False)
    assert "Nothing was verified" in page.text
    assert "passed" not in page.text
    assert "| base | `model.safetensors` | " in page.text
    assert "not taken" in page.text


def test_no_place_and_no_time_is_in_it(case):
    first, _ = card(case, name="one")
    second, _ = card(case, name="two", jobs=1)
    assert str(first) == str(second)
    assert str(case) not in str(first)
    assert not re.search(r"\b20\d\d-\d\d-\d\d", str(first))


COMMANDS = {
    "the usual": ({"recipe": "auto", "tied": "untie"}, "--alpha 8"),
    "strength": ({"weight": [0.5]}, "--weight 0.5"),
    "layout": ({"max_shard_size": "5GB"}, "--max-shard-size 5GB"),
    "a flag": ({"allow_noop": True}, "--allow-noop"),
    "a denial": ({"fan_in_fan_out": False, "tied": "error"}, "--no-fan-in-fan-out"),
    "what is trusted": ({"trust_file": False}, "--trust-config"),
    "a choice": ({"recipe": "exact"}, "--recipe exact"),
    "a glob": ({"allow_unmatched": ["m.*x", "m.lora_[C]"]}, "--allow-unmatched 'm.*x'"),
    "a file": ({"alpha": None, "hparams": "facts.toml"}, "--hparams FACTS"),
}


@pytest.mark.parametrize(("options", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_holds_every_option_but_no_path(options, expected, case):
    options = dict(options)
    if "hparams" in options:
        options["hparams"] = case / options["hparams"]
        options["hparams"].write_text("alpha = 8\n")
    if "allow_unmatched" in options:
        more = {"m.wx": torch.ones(1), "m.lora_C": torch.ones(1)}
        low = {"m.lora_A": torch.randn(2, 4), "m.lora_B": torch.randn(6, 2)}
        save_file({**low, **more}, case / "lora" / "adapter_model.safetensors")
    page, _ = card(case, **options)
    [command] = re.findall(r"```sh\n(.*)\n```", page.text)
    assert command.startswith("lora-export merge org/base-1B ADAPTER -o OUT ")
    assert expected in command
    assert ("--recipe" in command) is (options.get("recipe") == "exact")
    assert str(case) not in command


def test_names_from_outside_stay_in_their_cell(case):
    (case / "lora" / "adapter_model.safetensors").rename(case / "a`|<b>.safetensors")
    page, _ = card(case, adapter="a`|<b>.safetensors")
    assert "| `a???b?.safetensors` |" in page.text


def test_a_base_without_a_name_and_without_transformers(case):
    (case / "lora" / "adapter_config.json").unlink()
    (case / "base" / "config.json").unlink()
    page, _ = card(case)
    assert page.data.to_dict() == {"tags": ["lora-export", "merged-lora"]}
    assert "# A model, with a LoRA merged into it" in page.text
    assert "transformers" not in page.text
    assert "lora-export merge BASE ADAPTER" in page.text


@pytest.mark.parametrize("text", ["no", "1.0", "a: b", "- x", "#", "", "ü \U0001f600", 'a"b', "~"])
def test_every_text_is_a_text_in_yaml(text):
    lines = list(_front_matter({"key": text, "list": (text, text)}))
    assert yaml.safe_load("\n".join(lines[1:-1])) == {"key": text, "list": [text, text]}


def test_the_recipe_is_not_said_to_be_the_librarys_where_it_is_not(case):
    page, _ = card(case)
    assert "the bits of the merge of the library" in page.text
    page, _ = card(case, name="half", weight=[0.5])
    assert "the bits of the merge" not in page.text
    assert "library's own merge differs here, because an adapter has another weight" in page.text
