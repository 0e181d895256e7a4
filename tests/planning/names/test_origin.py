"""The names of quantised models lead to those of their originals, and no other name does."""

from pathlib import Path

import pytest

from lora_export.planning.names.origin import base_name, without_scheme
from lora_export.records import Adapter, Checkpoint

NAMES = {
    "unsloth/llama-3-8b-bnb-4bit": "unsloth/llama-3-8b",
    "unsloth/Qwen3-4B-unsloth-bnb-4bit": "unsloth/Qwen3-4B",
    "TheBloke/Mistral-7B-v0.1-GPTQ": "TheBloke/Mistral-7B-v0.1",
    "Qwen/Qwen2-7B-Instruct-GPTQ-Int4": "Qwen/Qwen2-7B-Instruct",
    "Qwen/Qwen3-8B-AWQ": "Qwen/Qwen3-8B",
    "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4": (
        "hugging-quants/Meta-Llama-3.1-8B-Instruct"
    ),
    "RedHatAI/Llama-3.2-1B-Instruct-FP8-dynamic": "RedHatAI/Llama-3.2-1B-Instruct",
    "neuralmagic/gemma-2-9b-it-quantized.w4a16": "neuralmagic/gemma-2-9b-it",
    "x-4bit-128g": "x",
    "X-7B-HQQ-4bit": "X-7B",
}
NO_SCHEME = [
    "meta-llama/Llama-3.1-8B", "openai/gpt-oss-20b", "bert-base-uncased", "org/sparse-block",
    "unsloth/llama-3-8b", "x-dynamic", "4bit", "",
]  # fmt: skip


@pytest.mark.parametrize(("name", "original"), NAMES.items())
def test_the_scheme_is_taken_off(name, original):
    assert without_scheme(name) == original


@pytest.mark.parametrize("name", NO_SCHEME)
def test_a_name_without_scheme_is_none(name):
    assert without_scheme(name) is None


def named(root, *trained_on):
    adapters = [Adapter(Path("x"), "peft", (), (), trained_on=name) for name in trained_on]
    return base_name(Checkpoint(Path(root), "folder", ()), adapters)


CACHED = "/home/me/.cache/huggingface/hub/models--org--name--x/snapshots/0123"


def test_the_name_of_a_base():
    assert named(CACHED, "another/one") == "org/name--x"
    assert named("here", "org/name") == "org/name"
    assert named("here", "unsloth/X-bnb-4bit") == "unsloth/X"
    assert not named("here", "TheBloke/X-GPTQ")  # whose the original is, is not known
    assert not named("here", "org/one", "org/two")
    for path in ("/home/me/model", "./model", "../a/b", "a/b/c", ""):
        assert not named("here", path)
