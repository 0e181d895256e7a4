"""LoRA configurations and files: what is said of every module, and what is refused and why."""

from pathlib import Path

import pytest

from lora_export.dialects import read_adapter
from lora_export.errors import InputError
from lora_export.records import AdapterFile, TensorRef, TensorSpec

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
LINEAR = {"q.lora_A.weight": (2, 8), "q.lora_B.weight": (12, 2)}
BIASED = {**LINEAR, "q.lora_B.bias": (12,)}
DORA = {**LINEAR, "q.lora_magnitude_vector": (12,)}
ATTENTION = {
    "a.lora_A.weight": (2, 8),
    "a.lora_B.weight": (24, 2),
    "a.base_layer.out_proj.lora_A.weight": (2, 8),
    "a.base_layer.out_proj.lora_B.weight": (8, 2),
}


def read(tensors=LINEAR, **members):
    refs = {
        name: TensorRef(TensorSpec(name, "F32", shape), Path("x"), 0, 0)
        for name, shape in tensors.items()
    }
    return read_adapter(AdapterFile(Path("x"), refs, config={**CONFIG, **members}), dialect=None)


def test_scaling_is_said_module_by_module():
    tensors = {f"h.{n}.{key}": shape for n in (0, 1) for key, shape in LINEAR.items()}
    adapter = read(tensors, use_rslora=True, alpha_pattern={"h.1.q": 6}, rank_pattern={"h.0.q": 1})
    first, second = (update.terms for update in adapter.updates)
    assert (first.alpha, first.rank, first.rule) == (4, 1, "alpha / sqrt(rank)")
    assert (second.alpha, second.rank) == (6, 2)


def test_a_bias_of_b_is_an_update_of_the_bias():
    weight, bias = read(BIASED, lora_bias=True).updates
    assert (weight.parameter, weight.terms.tuner) == ("weight", "lora")
    assert (bias.module, bias.parameter, bias.terms.tuner) == ("q", "bias", "lora_bias")
    assert set(bias.factors) == {"bias"}


@pytest.mark.parametrize("version", [None, "0.18.0", "0.21.2", "0.20.1.dev0@abc"])
def test_an_attention_is_two_updates(version):
    adapter = read(ATTENTION, peft_version=version, rank_pattern={"a": 2}, r=7)
    inner, outer = adapter.updates
    assert (inner.module, inner.parameter) == ("a", "in_proj_weight")
    assert (outer.module, outer.parameter) == ("a.out_proj", "weight")
    assert [u.terms.tuner for u in adapter.updates] == ["lora_attention_in", "lora_attention_out"]
    assert [u.terms.rank for u in adapter.updates] == [2, 2]  # both by the attention's name


def test_an_attention_may_be_the_root_module():
    tensors = {key.removeprefix("a."): shape for key, shape in ATTENTION.items()}
    assert [update.module for update in read(tensors).updates] == ["", "out_proj"]


REFUSED = {
    "activated": ({"alora_invocation_tokens": [1]}, LINEAR, ["invocation tokens"]),
    "arrow": ({"arrow_config": {"top_k": 2}}, LINEAR, ["Arrow", "every token"]),
    "qalora": ({"use_qalora": True}, LINEAR, ["QALoRA"]),
    "kasa": ({"kasa_config": {"beta": 1}}, LINEAR, ["KaSA", "merge_and_unload"]),
    "monteclora": ({"monteclora_config": {"x": 1}}, LINEAR, ["MonteCLoRA"]),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, LINEAR, ["block-diagonal"]),
    "velora": ({"velora_config": {"scale": 1}}, LINEAR, ["VeLoRA"]),
    **{
        start: ({"init_lora_weights": start}, LINEAR, [start, "path_initial_model"])
        for start in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga")
    },
    "dora and bias": ({"use_dora": True, "lora_bias": True}, LINEAR, ["only one of them"]),
    "no magnitude": ({"use_dora": True}, LINEAR, ["use_dora is True", "lacks a magnitude"]),
    "a magnitude": ({}, DORA, ["use_dora is False", "holds a magnitude"]),
    "no bias": ({"lora_bias": True}, LINEAR, ["lora_bias is True", "lacks a bias"]),
    "a bias": ({}, BIASED, ["lora_bias is False", "holds a bias"]),
    "a bias of A": ({}, {**LINEAR, "q.lora_A.bias": (2,)}, ["lora_A.bias is no factor"]),
    "no partner": ({}, {"q.lora_A.weight": (2, 8)}, ["lora_B is missing"]),
    "both kinds": ({}, {**LINEAR, "q.lora_embedding_A": (2, 8)}, ["linear layer and of an emb"]),
    "empty": ({}, {**LINEAR, "q.lora_A.weight": (0, 8)}, ["it is empty"]),
    "later peft": (
        {"peft_version": "0.22.0"},
        ATTENTION,
        ["may or may not add the update"],
    ),
    "no version": (
        {"peft_version": "x"},
        ATTENTION,
        ["may or may not add the update"],
    ),
    "other type": ({"peft_type": "PROMPT_TUNING"}, LINEAR, ["learned prompts"]),
    "no such type": ({"peft_type": "NOPE"}, LINEAR, ["NOPE"]),
    "type of type": ({"peft_type": 7}, LINEAR, ["peft_type = 7 is no text"]),
    "several adapters": (
        {},
        {"q.lora_A.x.weight": (2, 8), "q.lora_B.y.weight": (12, 2)},
        ["several adapters"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name):
    members, tensors, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        read(tensors, **members)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert all(problem.where for problem in caught.value.problems)


def test_all_problems_are_told_together():
    tensors = {**LINEAR, "k.lora_A.weight": (2, 8), "v.lora_B.weight": (2, 8)}
    with pytest.raises(InputError) as caught:
        read(tensors, lora_bias=True)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError) as caught:
        read(use_qalora=True, init_lora_weights="pissa", arrow_config={"x": 1})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base_as_it_is(start):
    assert len(read(init_lora_weights=start).updates) == 1
