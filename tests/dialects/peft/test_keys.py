"""Keys as PEFT of all ages writes them."""

from pathlib import Path

import pytest

from lora_export.dialects.peft.config import PeftConfig
from lora_export.dialects.peft.keys import FactorKey, sort_keys, split_key
from lora_export.dialects.peft.whole_tensors import whole_tensors
from lora_export.errors import InputError
from lora_export.records import AdapterFile, TensorRef, TensorSpec

STEMS = {"lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector"}


def file(*names):
    refs = {name: TensorRef(TensorSpec(name, "F32", (1,)), Path("x"), 0, 0) for name in names}
    return AdapterFile(Path("x"), refs)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("base_model.model.h.0.q.lora_A.weight", ("h.0.q", "lora_A", "weight", "")),
        ("base_model.model.h.0.q.lora_A.default.weight", ("h.0.q", "lora_A", "weight", "default")),
        ("base_model.h.0.q.lora_A.weight", ("h.0.q", "lora_A", "weight", "")),
        ("h.0.q.lora_A.my.name.weight", ("h.0.q", "lora_A", "weight", "my.name")),
        ("q.lora_B.bias", ("q", "lora_B", "bias", "")),
        ("q.lora_B.default.bias", ("q", "lora_B", "bias", "default")),
        ("wte.lora_embedding_A", ("wte", "lora_embedding_A", "", "")),
        ("wte.lora_embedding_A.default", ("wte", "lora_embedding_A", "", "default")),
        ("q.lora_magnitude_vector", ("q", "lora_magnitude_vector", "", "")),
        ("q.lora_magnitude_vector.weight", ("q", "lora_magnitude_vector", "weight", "")),
        ("q.lora_magnitude_vector.default", ("q", "lora_magnitude_vector", "", "default")),
        (
            "q.lora_magnitude_vector.default.weight",
            ("q", "lora_magnitude_vector", "weight", "default"),
        ),
        ("lora_A.weight", ("", "lora_A", "weight", "")),
        ("experts.base_layer.lora_A.weight", ("experts.base_layer", "lora_A", "weight", "")),
    ],
)
def test_a_factors_key(key, parts):
    assert split_key(key, STEMS) == FactorKey(*parts)


@pytest.mark.parametrize("key", ["q.weight", "flora_A.weight", "lora_A_net.weight", "", "."])
def test_what_is_no_factor(key):
    assert split_key(key, STEMS) is None


def test_every_key_is_sorted_once():
    found = sort_keys(
        file("q.lora_A.weight", "q.lora_B.weight", "q.lora_B.bias", "head.weight"), STEMS
    )
    assert {m: set(stems) for m, stems in found.factors.items()} == {
        "q": {"lora_A", "lora_B", "lora_B.bias"}
    }
    assert set(found.others) == {"head.weight"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("q.lora_A.one.weight", "q.lora_A.two.weight"), "several adapters: one, two"),
        (("q.lora_A.weight", "q.lora_A.default.weight"), "two keys are the lora_A"),
        (("base_model.model.q.lora_A.weight", "q.lora_A.weight"), "two keys are the lora_A"),
        (("q.lora_magnitude_vector", "q.lora_magnitude_vector.weight"), "two keys"),
    ],
)
def test_two_meanings_are_refused(keys, words):
    with pytest.raises(InputError, match=words):
        sort_keys(file(*keys), STEMS)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("base_model.model.classifier.weight", "classifier.weight"),
        ("base_model.model.classifier.modules_to_save.weight", "classifier.weight"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
        ("base_model.model.classifier.modules_to_save.default.out.bias", "classifier.out.bias"),
        ("base_model.model.wte.base_layer.weight", "wte.weight"),
        ("base_model.model.default.weight", "default.weight"),
    ],
)
def test_the_name_of_a_full_tensor(key, name):
    config = PeftConfig(Path("x"), {})
    [found], left_out, problems = whole_tensors(config, file(key).tensors, {"default"}, {})
    assert (found.name, left_out, problems) == (name, {}, [])
