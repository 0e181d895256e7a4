"""Every mistake of the table is named, and no right merge has a finding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from foreign_merges.making import combined, saved
from foreign_merges.mistakes import MISTAKES
from foreign_merges.places import Inputs, Place
from safetensors.torch import save_file

from lora_export.api import verify
from lora_export.errors import VerificationError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("inputs"))


def prove(place, *more, **options):
    return verify(place.out, base=place.base, adapters=[place.adapter, *more], **options)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(mistake, inputs, tmp_path):
    base = inputs.base(mistake.base, mistake.dtype)
    place = Place(inputs, tmp_path / "merged", base, inputs.adapter(base, mistake.adapter))
    mistake.make(place)
    with pytest.raises(VerificationError) as caught:
        prove(place, *(inputs.adapter(base, name) for name in mistake.more), **mistake.options)
    assert "undiagnosed" not in caught.value.facts
    findings = caught.value.findings
    assert findings[0].code == mistake.code
    assert mistake.words in findings[0].message
    if isinstance(mistake.names, int):
        assert len(findings[0].names) == mistake.names
    else:
        assert list(findings[0].names) == list(mistake.names)


def test_a_base_rounded_before_is_mended_by_saving_it_in_that_dtype(inputs, tmp_path):
    base = inputs.base("llama")
    place = Place(inputs, tmp_path / "merged", base, inputs.adapter(base, "plain"))
    place.peft(place.load(dtype=torch.bfloat16)).merge_and_unload().save_pretrained(place.out)
    with pytest.raises(VerificationError) as caught:
        prove(place)
    assert not any("the values are those" in found.message for found in caught.value.findings)
    assert "from_pretrained(BASE, dtype=torch.bfloat16)" in caught.value.problems[-1].hint
    place.base = tmp_path / "base"
    place.load(base, dtype=torch.bfloat16).save_pretrained(place.base)
    assert prove(place).passed


def sharded(place):
    place.merge().save_pretrained(place.out, max_shard_size="40KB")


def with_renamed_shards(place):
    sharded(place)
    index = place.out / "model.safetensors.index.json"
    text = index.read_text()
    for number, file in enumerate(sorted(place.out.glob("model-*.safetensors"))):
        text = text.replace(file.name, f"part{number}.safetensors")
        file.rename(place.out / f"part{number}.safetensors")
    index.write_text(text)


def in_half(place):
    place.merge().half().save_pretrained(place.out)


def with_tokenizer(place):
    place.merge().save_pretrained(place.out)
    shutil.copy(place.base / "tokenizer.json", place.out)
    (place.out / "README.md").write_text("merged")


RIGHT = {
    "auto": (saved(Place.merge), {}),
    "auto, in bfloat16": (saved(Place.merge), {"dtype": "bfloat16"}),
    "auto, in float16": (saved(Place.merge), {"dtype": "float16"}),
    "safe_merge": (
        saved(lambda place: place.merge(safe_merge=True)),
        {"dtype": "bfloat16"},
    ),
    "modules_to_save": (saved(Place.merge), {"adapter": "head"}),
    "token rows": (saved(Place.merge), {"adapter": "tokens"}),
    "biases": (saved(Place.merge), {"base": "qwen", "adapter": "biases"}),
    "biases of adapted layers": (saved(Place.merge), {"base": "qwen", "adapter": "own biases"}),
    "DoRA": (saved(Place.merge), {"adapter": "dora"}),
    "rslora": (saved(Place.merge), {"adapter": "rslora"}),
    "two ranks": (saved(Place.merge), {"adapter": "ranks"}),
    "tied": (saved(Place.merge), {"base": "tied"}),
    "stored (in, out)": (saved(Place.merge), {"base": "gpt2", "adapter": "attention"}),
    "sharded": (sharded, {}),
    "renamed shards": (with_renamed_shards, {}),
    "with a tokenizer": (with_tokenizer, {}),
    "stored in float16": (in_half, {"options": {"dtype": "float16"}}),
    "two adapters": (combined("plain", "other"), {"more": ["other"]}),
}


@pytest.mark.parametrize(("make", "given"), RIGHT.values(), ids=RIGHT)
def test_a_right_merge_passes_without_a_finding(make, given, inputs, tmp_path):
    base = inputs.base(given.get("base", "llama"), given.get("dtype", "float32"))
    place = Place(
        inputs, tmp_path / "merged", base, inputs.adapter(base, given.get("adapter", "plain"))
    )
    make(place)
    more = [inputs.adapter(base, name) for name in given.get("more", ())]
    report = prove(place, *more, **given.get("options", {}))
    assert report.passed
    assert report.findings == ()
    assert "modules" not in report.facts
    missing = any("missing here; transformers looks for" in told for told in report.warnings)
    assert missing is not (place.out / "tokenizer.json").is_file()


def test_transformers_does_not_load_a_merge_beside_an_adapter_config(inputs, tmp_path):
    """So the file fails a check, though every weight in the folder is right."""
    base = inputs.base("llama")
    place = Place(inputs, tmp_path / "merged", base, inputs.adapter(base, "plain"))
    place.merge().save_pretrained(place.out)
    place.load(place.out)
    shutil.copy(place.adapter / "adapter_config.json", place.out)
    with pytest.raises(OSError, match="adapter"):
        place.load(place.out)


def test_whole_numbers_under_another_name_are_compared_by_their_content(tmp_path):
    tensors = {"h.weight": torch.randn(6, 4), "h.position_ids": torch.arange(5)}
    save_file(tensors, tmp_path / "base.safetensors")
    factors = {"h.lora_A": torch.randn(2, 4), "h.lora_B": torch.randn(6, 2)}
    save_file(factors, tmp_path / "lora.safetensors")
    merged = tensors["h.weight"] + factors["h.lora_B"] @ factors["h.lora_A"] * 2
    other = {"module.h.weight": merged, "module.h.position_ids": tensors["h.position_ids"]}
    save_file(other, tmp_path / "merged.safetensors")
    with pytest.raises(VerificationError) as caught:
        verify(
            tmp_path / "merged.safetensors",
            base=tmp_path / "base.safetensors",
            adapters=[tmp_path / "lora.safetensors"],
            alpha=4,
        )
    assert [finding.code for finding in caught.value.findings] == ["renamed"]


def test_every_code_is_documented():
    page = (Path(__file__).resolve().parents[3] / "docs" / "proof.md").read_text("utf-8")
    codes = {mistake.code for mistake in MISTAKES.values()}
    assert {code for code in codes if f"`{code}`" not in page} == set()
