"""Expressions of trainers fit what Python's matcher says, in a bounded number of steps."""

import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_export.dialects.peft import expressions
from lora_export.dialects.peft.expressions import MAX_STEPS, Expression
from lora_export.errors import InputError, LimitError

PARTS = ["q_proj", "k_proj", "layers", "0", "1", "10", "model", "visual", "Q"]
PIECES = [
    *PARTS, r"\d+", ".*", ".*?", r"\.", ".", "|", "(0|1)", "(?:q|k)_proj", "[01]", "[^a]", "^", "$",
    "+", "?", "*", r"\w", r"\W", r"\b", r"\B", r"[\d_]", "[a-c_]", "(?!.*visual)", "(?=.*proj)",
    r"(?<=\.)", "(?<!q)", "(", ")", "{1,2}", "{2}", "(?i)", "(?i:q)", "(?s)", r"\Z", r"\s",
]  # fmt: skip
NAMES = st.lists(st.sampled_from([*PARTS, "\n"]), min_size=1, max_size=5).map(".".join)
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)

# As unsloth and LLaMA-Factory write target_modules.
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|"
    r"feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj|gate_proj|up_proj|"
    r"down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|"
    r"ffn|dense)\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
WITHOUT_VISION = r"^(?!.*(?:patch_embed|visual|merger)).*(?:q_proj|k_proj|o_proj)"


@settings(max_examples=300, deadline=None)
@given(TEXTS, NAMES)
def test_a_name_fits_where_python_says_so(text, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = re.fullmatch(text, name) is not None
        except re.error:
            with pytest.raises((InputError, LimitError)):
                Expression.of(text, "a test").fits(name)
            return
    if re.search(r"[*+?}]\+", text):
        return  # a possessive repeat, of Python 3.11 and later
    assert Expression.of(text, "a test").fits(name) is wanted


@pytest.mark.parametrize(
    ("text", "name", "fits"),
    [
        (UNSLOTH, "model.layers.11.self_attn.q_proj", True),
        (UNSLOTH, "model.visual.blocks.3.attn.q_proj", True),
        (UNSLOTH, "model.layers.11.block_sparse_moe.gate", False),
        (WITHOUT_VISION, "model.language_model.layers.0.self_attn.q_proj", True),
        (WITHOUT_VISION, "model.visual.blocks.0.attn.q_proj", False),
    ],
)
def test_expressions_of_trainers(text, name, fits):
    assert Expression.of(text, "a test").fits(name) is fits


@pytest.mark.parametrize("text", ["(((a*)*)*)*(a|aa)*b", "(a+)+$c", "(.*.*.*.*.*.*)+x"])
def test_what_python_never_ends_is_decided(text):
    expression = Expression.of(text, "a test")
    assert expression.fits("a" * 300) is False
    assert expression.steps < MAX_STEPS / 10


@pytest.mark.parametrize("text", [r"(a)\1", "(?P<x>a)(?P=x)", "(a)?(?(1)b|c)"])
def test_what_depends_on_the_order_of_trials_is_refused(text):
    with pytest.raises(LimitError, match="is not supported here"):
        Expression.of(text, "a test").fits("aa")


def test_an_alternative_for_each_of_many_modules_is_matched():
    modules = [f"model.layers.{number}.mlp.down_proj" for number in range(1500)]
    expression = Expression.of("|".join(map(re.escape, modules)), "a test")
    assert all(expression.fits(module) for module in modules)
    assert not expression.fits("model.layers.1500.mlp.down_proj")
    either = Expression.of("(?i)A|b|", "a test")
    assert [either.fits(one) for one in ("a", "B", "", "c")] == [True, True, True, False]


def test_an_expression_is_bounded(monkeypatch):
    with pytest.raises(LimitError, match="characters"):
        Expression.of("a" * 200_000, "a test")
    monkeypatch.setattr(expressions, "MAX_STEPS", 1000)
    with pytest.raises(LimitError, match="may take for ever"):
        Expression.of("(?:(?!.*x).)*", "a test").fits("ab" * 100)
