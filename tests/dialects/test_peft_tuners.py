"""What PEFT's tuners beside LoRA say, and what of it is refused."""

import dataclasses
from pathlib import Path

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from lora_export.dialects import read_adapter
from lora_export.dialects.peft import all_tuners
from lora_export.dialects.peft.fields import FIELDS
from lora_export.dialects.peft.refusals import BY_PEFT, NO_WEIGHT
from lora_export.errors import InputError, LoraExportError
from lora_export.records import AdapterFile, TensorRef, TensorSpec

ALL = {kind.value for kind in peft.PeftType}


def file(config, tensors, dtype="F32"):
    refs = {
        f"base_model.model.{name}" if not name.startswith("vera_") else f"base_model.{name}":
        TensorRef(TensorSpec(name, dtype, shape), Path("x"), 0, 0)
        for name, shape in tensors.items()
    }  # fmt: skip
    return AdapterFile(Path("x"), refs, config=config)


def read(config, tensors):
    return read_adapter(file(config, tensors), dialect=None)


def test_every_type_of_peft_is_read_or_refused_by_name():
    assert set(all_tuners()) | NO_WEIGHT.keys() | BY_PEFT == ALL
    assert not NO_WEIGHT.keys() & (BY_PEFT | set(all_tuners()))


@pytest.mark.parametrize("kind", sorted(ALL | {"NEWER"}))
def test_a_type_that_is_not_read_is_named_with_what_to_do(kind):
    if kind in all_tuners():
        return
    with pytest.raises(InputError) as caught:
        read({"peft_type": kind}, {"q.x_A.weight": (2, 4)})
    (problem,) = caught.value.problems
    assert kind in problem.message
    word = "nothing can be merged" if kind in NO_WEIGHT else ""
    assert word in problem.message
    assert ("merge_and_unload" in problem.hint) == (kind not in NO_WEIGHT)


def test_what_has_no_weight_is_what_peft_cannot_merge():
    """PEFT's models for those have no merge, or one that refuses."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    able = {
        kind.value for kind, model in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if hasattr(model, "merge_and_unload")
    }  # fmt: skip
    assert able >= BY_PEFT
    assert ALL - able <= set(NO_WEIGHT)


@pytest.mark.parametrize("kind", FIELDS)
def test_the_fields_are_those_of_peft(kind):
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[kind]]
    assert {field.name for field in dataclasses.fields(config)} == FIELDS[kind]


LOHA = {f"q.hada_{name}": shape for name, shape in
        {"w1_a": (8, 2), "w1_b": (2, 6), "w2_a": (8, 2), "w2_b": (2, 6)}.items()}  # fmt: skip
ADALORA = {"q.lora_A": (2, 6), "q.lora_B": (8, 2), "q.lora_E": (2, 1)}
LOKR = {"q.lokr_w1": (2, 2), "q.lokr_w2_a": (4, 2), "q.lokr_w2_b": (2, 3)}
VERA = {"q.vera_lambda_b": (8,), "q.vera_lambda_d": (2,)}
SAVED = {**VERA, "vera_A": (2, 6), "vera_B": (8, 2)}


def test_unknown_fields_that_say_something_are_told():
    config = {"peft_type": "LOHA", "r": 2, "foo": 3, "bar": None, "baz": False, "list": [], "no": 0}
    notes = read(config, LOHA).doubts
    assert [note.split(" = ")[0] for note in notes] == [
        "adapter_config.json has foo", "adapter_config.json has no",
    ]  # fmt: skip


def test_a_known_field_is_no_news():
    assert read({"peft_type": "LOHA", "r": 2, "module_dropout": 0.5}, LOHA).doubts == ()


def test_pruned_modules_are_told():
    gone = {"k.lora_A": (0, 6), "k.lora_B": (8, 0), "k.lora_E": (0, 1)}
    pattern = {"q.lora_E": [True, True], "k.lora_E": [False, False]}
    config = {"peft_type": "ADALORA", "init_r": 2, "rank_pattern": pattern}
    adapter = read(config, {**ADALORA, **gone})
    assert [update.module for update in adapter.updates] == ["q"]
    assert adapter.doubts == ("pruned to rank 0 in training, so not changed: k",)


def test_ia3_says_inputs_or_outputs():
    config = {"peft_type": "IA3", "feedforward_modules": "w.*"}
    found = read(config, {"wo.ia3_l": (1, 6), "k.ia3_l": (8, 1), "w1.ia3_l": (1, 4, 1, 1)})
    assert [(u.module, u.parameter, u.terms.tuner, u.optional) for u in found.updates] == [
        ("wo", "weight", "ia3_feedforward", False),
        ("k", "weight", "ia3", False),
        ("k", "bias", "ia3", True),
        ("w1", "weight", "ia3_feedforward", False),
    ]


REFUSED = [
    # (config, tensors, words of the problem)
    ({"peft_type": "LOHA"}, LOHA | {"k.hada_w1_a": (8, 2)}, "hada_w1_b, hada_w2_a, hada_w2_b"),
    ({"peft_type": "LOHA"}, LOHA | {"q.hada_t1": (2, 2, 3, 3)}, "hada_t2 missing"),
    ({"peft_type": "LOHA"}, LOHA | {"q.hada_w1_a.bias": (8,)}, "hada_w1_a.bias is no factor"),
    ({"peft_type": "LOHA", "r": 0}, LOHA, "r = 0 is no positive whole number"),
    ({"peft_type": "LOHA", "alpha": "x"}, LOHA, "alpha = 'x' is no finite number"),
    ({"peft_type": "LOHA", "alpha": 10**400}, LOHA, "is above"),
    ({"peft_type": "LOHA", "rank_pattern": [1]}, LOHA, "is no object"),
    ({"peft_type": "LOHA", "rank_pattern": {"(": 1}}, LOHA, "is no pattern"),
    ({"peft_type": "LOHA", "rank_pattern": {"(a+)+b": 1}}, LOHA, "may take for ever"),
    ({"peft_type": "LOKR"}, {"q.lokr_w1": (2, 2)}, "lokr_w2_a, lokr_w2_b missing"),
    ({"peft_type": "ADALORA", "init_r": 2}, {"q.lora_A": (2, 6)}, "lora_B, lora_E missing"),
    ({"peft_type": "ADALORA", "init_r": 3}, ADALORA, "init_r in adapter_config.json gives 3"),
    ({"peft_type": "ADALORA", "init_r": 2, "use_dora": True}, ADALORA, "use_dora is set"),
    ({"peft_type": "ADALORA", "rank_pattern": {"q.lora_E": 3}}, ADALORA, "true and false"),
    ({"peft_type": "ADALORA", "rank_pattern": {"q": [True]}}, ADALORA, "does not name a lora_E"),
    ({"peft_type": "ADALORA", "rank_pattern": {"q.lora_E": [True]}}, ADALORA, "gives 1"),
    (
        {"peft_type": "ADALORA", "init_r": 2, "rank_pattern": {"k.lora_E": [True]}},
        ADALORA,
        "leaves this module out",
    ),
    ({"peft_type": "VERA", "r": 2}, VERA, "save_projection is true"),
    ({"peft_type": "VERA", "r": 2}, {**VERA, "vera_A": (2, 6)}, "vera_B missing"),
    ({"peft_type": "VERA", "r": 2, "save_projection": False}, SAVED, "are in the file"),
    ({"peft_type": "VERA", "r": 2}, SAVED | {"k.vera_lambda_b": (8,)}, "vera_lambda_d missing"),
    ({"peft_type": "VERA", "r": 2}, SAVED | {"k.vera_A": (2, 6)}, "projection of its own"),
    (
        {"peft_type": "VERA", "save_projection": False, "projection_prng_key": -1},
        VERA,
        "no seed",
    ),
    ({"peft_type": "IA3"}, {"q.ia3_l": (1, 6, 1, 1)}, "feedforward_modules is not in"),
    ({"peft_type": "IA3", "feedforward_modules": ["q"]}, {"q.ia3_l": (6, 1)}, "contradicts"),
    ({"peft_type": "IA3", "feedforward_modules": []}, {"q.ia3_l": (1, 6)}, "contradicts"),
    ({"peft_type": "IA3", "feedforward_modules": 3}, {"q.ia3_l": (1, 6)}, "is no list"),
    ({"peft_type": "IA3", "feedforward_modules": "("}, {"q.ia3_l": (1, 6)}, "is no pattern"),
    ({"peft_type": "IA3"}, {"q.ia3_l.bias": (6,)}, "ia3_l.bias is no factor"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "tensors", "words"), REFUSED)
def test_refused(config, tensors, words):
    with pytest.raises(LoraExportError) as caught:
        read(config, tensors)
    assert words in str(caught.value)


def test_all_problems_come_together():
    tensors = {"q.hada_w1_a": (8, 2), "k.hada_w1_b": (2, 6)}
    with pytest.raises(InputError) as caught:
        read({"peft_type": "LOHA"}, tensors)
    assert len(caught.value.problems) == 2
