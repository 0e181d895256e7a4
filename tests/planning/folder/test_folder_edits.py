"""What lies around the weights: the base's, byte for byte, unless the merge forces another."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_export.api import merge, unmerge, verify
from lora_export.checkpoint.folder.tokenizer_files import is_tokenizer_file
from lora_export.errors import UsageError
from lora_export.planning.config_edits import ConfigEdits
from lora_export.planning.facts.user_facts import FactTable
from lora_export.planning.findings import Findings
from lora_export.planning.folder.folder_edits import plan_folder
from lora_export.planning.given import Given
from lora_export.planning.merge_options import Options
from lora_export.planning.names.base_names import BaseNames
from lora_export.records import Facts

OWN = {
    "tokenizer.json": "base", "tokenizer_config.json": "base", "vocab.txt": "base",
    "chat_template.jinja": "base", "generation_config.json": "{ }", "notes.txt": "kept",
    "config.json": '{"vocab_size": 6, "dtype":   "bfloat16"}',
}  # fmt: skip
THEIRS = {
    "tokenizer.json": "adapter", "tokenizer_config.json": "adapter",
    "chat_template.jinja": "adapter", "additional_chat_templates/tool.jinja": "adapter",
    "README.md": "the adapter's", "training_args.json": "x",
}  # fmt: skip


def write(folder: Path, files) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


class Case:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = write(folder / "base", OWN)
        save_file({"m.weight": torch.randn(6, 4)}, self.base / "model.safetensors")

    def adapter(self, name="lora", files=THEIRS) -> Path:
        path = write(self.folder / name, {**files, "x": ""})
        low = {"m.lora_A": torch.randn(2, 4), "m.lora_B": torch.randn(6, 2)}
        save_file(low, path / "adapter_model.safetensors")
        return path

    def merge(self, *adapters, **options):
        return merge(self.base, adapters, self.folder / "out", alpha=4, **options)

    def written(self):
        return {name: (self.folder / "out" / name).read_text() for name in sorted(
            path.relative_to(self.folder / "out").as_posix()
            for path in (self.folder / "out").rglob("*") if path.is_file()
        ) if not name.endswith((".safetensors", "lora_export.json", "README.md"))}  # fmt: skip


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


@pytest.mark.parametrize("option", [None, "base"])
def test_the_base_s_files_go_along(option, case):
    report = case.merge(case.adapter(), tokenizer=option)
    assert case.written() == OWN
    told = [choice for choice in report.plan.choices if choice.startswith("tokenizer")]
    assert bool(told) is (option is None)
    if told:
        assert "the adapter's folder has another" in told[0]
        assert "--tokenizer adapter" in told[0]


def test_the_same_tokenizer_is_not_worth_a_word(case):
    same = {name: OWN[name] for name in ("tokenizer.json", "chat_template.jinja")}
    report = case.merge(case.adapter(files=same))
    assert not [choice for choice in report.plan.choices if "tokenizer" in choice]


def test_on_request_the_adapter_s_tokenizer_takes_the_base_s_place(case):
    adapter = case.adapter()
    report = case.merge(adapter, tokenizer="adapter", undo=case.folder / "undo.safetensors")
    theirs = {name: text for name, text in THEIRS.items() if is_tokenizer_file(name)}
    kept = {name: text for name, text in OWN.items() if not is_tokenizer_file(name)}
    assert case.written() == {**kept, **theirs}
    told = " ".join(report.plan.choices)
    assert "left out, as the adapter has none: vocab.txt" in told
    manifest = json.loads((case.folder / "out" / "lora_export.json").read_text())
    assert manifest["edits"]["tokenizer.json"] == ["the adapter's"]
    assert manifest["options"]["tokenizer"] == "adapter"
    again = verify(case.folder / "out", base=case.base, adapters=[adapter])
    assert again.passed
    assert any("tokenizer adapter" in warning for warning in again.warnings)
    unmerge(case.folder / "out", case.folder / "back", undo=case.folder / "undo.safetensors")
    restored = {p.name: p.read_text() for p in (case.folder / "back").iterdir() if p.name in OWN}
    assert restored == OWN
    assert {p.name for p in (case.folder / "back").iterdir()} == {*OWN, "model.safetensors"}


REFUSED = {
    "none": ([{}], "no adapter's folder holds tokenizer files"),
    "two": ([THEIRS, {"tokenizer.json": "other"}], "2 adapters have different tokenizers"),
}


@pytest.mark.parametrize(("folders", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_is_not_one(folders, message, case):
    adapters = [case.adapter(f"lora-{n}", files) for n, files in enumerate(folders)]
    with pytest.raises(UsageError, match=message):
        case.merge(*adapters, tokenizer="adapter")


def test_two_adapters_with_one_tokenizer(case):
    case.merge(case.adapter("a"), case.adapter("b"), tokenizer="adapter")
    assert case.written()["tokenizer.json"] == "adapter"


def test_a_single_file_has_no_tokenizer(case, tmp_path):
    base = case.base / "model.safetensors"
    with pytest.raises(UsageError, match="without a tokenizer"):
        merge(base, [case.adapter()], tmp_path / "o.safetensors", alpha=4, tokenizer="adapter")
    report = merge(base, [case.adapter()], tmp_path / "o.safetensors", alpha=4)
    assert report.plan.card is None
    assert not (tmp_path / "README.md").exists()


# A larger vocabulary, planned as a replaced table with more rows.


def grown(case, adapter):
    plan = case.merge(adapter, dry_run=True).plan
    facts = FactTable.joined(Facts(), Facts(), (), {})
    stored = plan.base.tensors()
    given = Given(plan.base, stored, BaseNames(stored), (), plan.adapters, facts, None, Options())
    edits, findings = ConfigEdits(plan.base.config), Findings()
    edits.edit("vocab_size", 8)
    edits.edit("tie_word_embeddings", value=False)
    files, _ = plan_folder(given, (6, 8), edits, findings)
    return findings, {file.name: file for file in files}


def test_a_larger_vocabulary_brings_its_tokenizer(case):
    adapter = case.adapter()
    findings, files = grown(case, adapter)
    assert files["tokenizer.json"].source == adapter / "tokenizer.json"
    assert "vocab.txt" not in files
    assert json.loads(files["config.json"].content) == {
        "vocab_size": 8, "dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    assert files["config.json"].edits == ("vocab_size: 8", "tie_word_embeddings: false")
    assert "its vocabulary is larger" in " ".join(findings.choices)


def test_a_larger_vocabulary_without_a_tokenizer_is_told(case):
    findings, files = grown(case, case.adapter(files={}))
    assert files["tokenizer.json"].source == case.base / "tokenizer.json"
    assert "does not know the new tokens" in " ".join(findings.warnings)


TOKENIZER = [
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v3",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json", "qwen.tiktoken", "source.spm",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja",
]  # fmt: skip
OTHER = [
    "config.json", "generation_config.json", "preprocessor_config.json", "README.md",
    "1_Pooling/vocab.txt", "vocab.bin", "my_tokenizer.json", "modeling.py",
]  # fmt: skip


def test_which_files_are_the_tokenizer_s():
    assert all(map(is_tokenizer_file, TOKENIZER))
    assert not any(map(is_tokenizer_file, OTHER))
