"""The modules that a configuration selects are those for which PEFT makes layers."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists

from lora_export.dialects.peft.config import PeftConfig
from lora_export.dialects.peft.selection import Selection
from lora_export.errors import InputError

PARTS = ["q", "v", "vq", "layers", "h", "0", "1", "12", "model", "experts", "head"]
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join)
LISTS = st.lists(NAMES, max_size=4)
PATTERNS = st.sampled_from([r".*\.q", r".*layers\.\d+\.(q|v)", "q", r"(?!.*experts).*", "model.*"])


def selection(**members):
    return Selection.of(PeftConfig(Path("adapter_config.json"), {"peft_type": "LORA", **members}))


@settings(max_examples=300, deadline=None)
@given(
    target_modules=LISTS | PATTERNS,
    exclude_modules=st.none() | LISTS | PATTERNS,
    modules_to_save=st.none()
    | st.lists(st.sampled_from(["head", "0", "model.v", "v."]), max_size=2),
    layers_to_transform=st.none() | st.lists(st.sampled_from([0, 1, 12]), max_size=2) | st.just(1),
    layers_pattern=st.none() | st.sampled_from(["layers", "h", ["h", "layers"], "", []]),
    name=NAMES,
)
def test_the_answer_is_pefts(name, **members):
    if isinstance(members["target_modules"], str):
        members |= {"layers_to_transform": None, "layers_pattern": None}
    wanted = check_target_module_exists(SimpleNamespace(**members, target_parameters=None), name)
    assert (not selection(**members).leaves_out(name)) is bool(wanted)


@pytest.mark.parametrize(
    ("members", "module", "reason"),
    [
        ({"target_modules": ["q"]}, "model.layers.0.v", "target_modules"),
        ({"target_modules": ["q"]}, "model.layers.0.vq", "target_modules"),
        ({"target_modules": ["q"], "exclude_modules": ["0.q"]}, "layers.0.q", "exclude_modules"),
        ({"target_modules": ["q"], "modules_to_save": ["head"]}, "head.q", "modules_to_save"),
        ({"target_modules": ["out_proj"], "task_type": "SEQ_CLS"}, "classifier.out_proj",
         "modules_to_save"),
        ({"target_modules": ["q"], "layers_to_transform": [1]}, "model.layers.0.q",
         "layers_to_transform"),
        ({"target_modules": "all-linear"}, "anything", ""),
        ({"target_modules": None}, "anything", ""),
        ({"target_modules": None, "target_parameters": ["e.w"]}, "layers.q", "target_modules"),
        ({"target_modules": None, "target_parameters": ["e.w"]}, "layers.e.w", ""),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "lm_head", ""),
    ],
)  # fmt: skip
def test_the_reason_is_named(members, module, reason):
    assert selection(**members).leaves_out(module) == reason


def test_a_type_without_a_member_does_not_read_it():
    config = {"peft_type": "VERA", "target_modules": ["q"], "exclude_modules": ["q"]}
    assert not Selection.of(PeftConfig(Path("c.json"), config)).leaves_out("layers.q")


@pytest.mark.parametrize(
    ("names", "fault"),
    [([f"l{n}" for n in range(21)], "holds more than 20 names"), (["l" * 201], "is no name")],
)
def test_names_of_layers_are_bounded(names, fault):
    with pytest.raises(InputError, match=fault):
        selection(target_modules=["q"], layers_to_transform=[0], layers_pattern=names)
