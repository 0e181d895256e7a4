"""A manifest that does not fit the files beside it: what happened to them is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_export.api import merge, verify
from lora_export.errors import VerificationError

MANIFEST = "lora_export.json"


def tensors(seed):
    torch.manual_seed(seed)
    return {name: torch.randn(6, 5) for name in ("a.weight", "b.weight")}


@pytest.fixture
def place(tmp_path):
    """A merged folder of two shards, and another merge of the same base."""
    base = tmp_path / "base"
    base.mkdir()
    for name, tensor in tensors(0).items():
        save_file({name: tensor}, base / f"{name[0]}.safetensors")
    weight_map = {name: f"{name[0]}.safetensors" for name in tensors(0)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (base / "config.json").write_text('{"a": 1}')
    for seed in (1, 2):
        torch.manual_seed(seed)
        factors = {
            f"{name}.lora_{role}": torch.randn(shape)
            for name in "ab"
            for role, shape in (("A", (2, 5)), ("B", (6, 2)))
        }
        save_file(factors, tmp_path / f"lora{seed}.safetensors")
        merge(base, [tmp_path / f"lora{seed}.safetensors"], tmp_path / f"out{seed}", alpha=4)
    return tmp_path


def rename_shard(place):
    index = place / "out1" / "model.safetensors.index.json"
    (place / "out1" / "a.safetensors").rename(place / "out1" / "other.safetensors")
    index.write_text(index.read_text().replace("a.safetensors", "other.safetensors"))


def rename_config(place):
    (place / "out1" / "config.json").rename(place / "out1" / "config.old")


def lose_config(place):
    (place / "out1" / "config.json").unlink()


def change_shard(place):
    file = place / "out1" / "b.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)


def add_weights(place):
    save_file(tensors(3), place / "out1" / "model.safetensors")


def copy_manifest(place):
    for file in place.joinpath("out1").iterdir():
        if file.name != MANIFEST:
            file.unlink()
    save_file(tensors(4), place / "out1" / "model.safetensors")


FAULTS = {
    "a shard under another name": (
        rename_shard,
        ["files-renamed", "files-changed"],
        "1 file of the manifest is under another name: other.safetensors, recorded as a.saf",
    ),
    "a side file under another name": (
        rename_config,
        ["files-renamed"],
        "config.old, recorded as config.json",
    ),
    "a lost file": (lose_config, ["files-missing"], "1 file of the manifest is missing"),
    "a changed shard": (change_shard, ["files-changed"], "1 of 5 files changed after the manif"),
    "new weights": (add_weights, ["files-added"], "1 weight file that the manifest does not list"),
    "the manifest of another merge": (
        copy_manifest,
        ["manifest-of-another"],
        "the manifest is of another artefact",
    ),
}


@pytest.mark.parametrize(("change", "codes", "words"), FAULTS.values(), ids=FAULTS)
def test_what_happened_to_the_files_is_named(change, codes, words, place):
    change(place)
    with pytest.raises(VerificationError) as caught:
        verify(place / "out1")
    findings = caught.value.findings
    assert [finding.code for finding in findings] == codes
    assert words in findings[0].message
    assert all(finding.names for finding in findings)


def test_a_single_file_under_another_name_with_its_manifest(place):
    save_file(tensors(0), place / "base.safetensors")
    old, new = place / "old.safetensors", place / "new.safetensors"
    merge(place / "base.safetensors", [place / "lora1.safetensors"], old, alpha=4)
    old.rename(new)
    shutil.move(f"{old}.{MANIFEST}", f"{new}.{MANIFEST}")
    with pytest.raises(VerificationError) as caught:
        verify(new)
    (finding,) = caught.value.findings
    assert finding.code == "files-renamed"
    assert "new.safetensors, recorded as old.safetensors" in finding.message


def test_a_merge_of_other_inputs_under_this_manifest(place):
    with pytest.raises(VerificationError) as caught:
        verify(place / "out1", base=place / "base", adapters=[place / "lora2.safetensors"])
    (finding,) = caught.value.findings
    assert finding.code == "other-inputs"
    assert finding.names == (str(place / "lora2.safetensors"),)


def test_our_own_merge_that_was_merged_again_is_named_as_such(place):
    """The digest shows that a file has changed; the weights show what was done to it."""
    base, merged = (load_file(place / name / "b.safetensors") for name in ("base", "out1"))
    again = {name: 2 * tensor - base[name] for name, tensor in merged.items()}
    save_file(again, place / "out1" / "b.safetensors")
    with pytest.raises(VerificationError) as caught:
        verify(place / "out1", base=place / "base", adapters=[place / "lora1.safetensors"])
    codes = [finding.code for finding in caught.value.findings]
    assert codes == ["merged-twice", "files-changed"]
    assert caught.value.findings[0].names == ("b",)
