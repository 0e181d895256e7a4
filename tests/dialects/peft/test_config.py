"""adapter_config.json: PEFT's defaults for what is missing, a refusal for what is wrong."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from lora_export.dialects.peft.config import MAX_RANK, PeftConfig
from lora_export.errors import InputError, LimitError, LoraExportError

PATH = Path("folder/adapter_config.json")


def config(**members):
    return PeftConfig(PATH, members)


def test_defaults_are_those_of_peft():
    ours, theirs = config(), LoraConfig()
    assert ours.whole("r", 8) == theirs.r
    assert ours.number("lora_alpha", 8) == theirs.lora_alpha
    for name in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"):
        assert ours.flag(name) is getattr(theirs, name) is False
    assert ours.ranks() == ours.alphas() == []
    assert theirs.rank_pattern == theirs.alpha_pattern == {}


def test_null_is_as_missing():
    nothing = config(r=None, lora_alpha=None, use_dora=None, rank_pattern=None, target_modules=None)
    assert nothing.whole("r", 8) == 8
    assert nothing.number("lora_alpha", 8) == 8
    assert nothing.flag("use_dora") is False
    assert nothing.ranks() == []
    assert nothing.texts("target_modules") == ()


def test_patterns_keep_the_order_of_the_file():
    given_order = {"b": 2, "a": 1, "c": 3}
    assert [(p.text, v) for p, v in config(rank_pattern=given_order).ranks()] == [
        *given_order.items()
    ]
    assert [v for _, v in config(alpha_pattern={"q": 1.5}).alphas()] == [1.5]


WRONG = {
    "whole": ("8", 8.0, True, 0, -1, [], {}, float("nan")),
    "number": ("8", True, [], {}, float("nan"), float("inf"), 10**400, -(10**400), 1e300),
    "flag": (0, 1, "true", [], {}),
    "text": (1, True, [], {}),
    "texts": (1, {}, [1], ["a", None]),
    "table": (1, "a", []),
}


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_wrong_type_is_refused_with_the_key_and_the_file(kind, value):
    with pytest.raises(InputError, match="key") as caught:
        getattr(config(key=value), kind)("key")
    assert str(PATH) in str(caught.value)


@pytest.mark.parametrize(
    "members",
    [
        {"r": MAX_RANK + 1},
        {"r": 10**8},
        {"r": 10**5000},
        {"rank_pattern": {"q": 10**8}},
        {"rank_pattern": {str(number): 1 for number in range(10_001)}},
        {"alpha_pattern": {str(number): 1 for number in range(10_001)}},
    ],
    ids=["rank", "huge", "digits", "pattern", "many ranks", "many alphas"],
)
def test_what_would_take_all_memory_or_time_is_a_limit(members):
    asked = config(**members)
    with pytest.raises(LimitError):
        all((asked.whole("r", 8), asked.ranks() or True, asked.alphas() or True))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
)


@given(VALUES)
def test_no_value_is_a_traceback(value):
    asked = config(key=value, rank_pattern=value, alpha_pattern=value)
    questions = (asked.flag, asked.text, asked.whole, asked.number, asked.texts, asked.table)
    for ask in (*(partial(question, "key") for question in questions), asked.ranks, asked.alphas):
        with suppress(LoraExportError):
            ask()
