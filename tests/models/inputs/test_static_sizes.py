"""Dimensions are fixed by name, and only those that there are."""

import pytest

from lora_export.errors import UsageError
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.models.inputs.static_sizes import parse_static, static_hint, with_static
from lora_export.records import InputSpec, Span

TEXT = parse_inputs(["ids=int64[batch,sequence]<9", "mask=int64[batch,sequence]", "x=float32[2]"])
BOUNDED = (InputSpec("ids", "int64", ("batch", "n"), 9, {"n": Span(offset=4, most=40)}),)


def test_a_dimension_is_fixed_in_every_input():
    fixed = with_static(TEXT, parse_static(["sequence=512"]))
    assert [spec.dims for spec in fixed] == [("batch", 512), ("batch", 512), (2,)]
    fixed = with_static(TEXT, parse_static(["sequence = 7", "batch=1"]))
    assert [spec.dims for spec in fixed] == [(1, 7), (1, 7), (2,)]
    assert with_static(BOUNDED, {"n": 40})[0].spans == {"40": BOUNDED[0].spans["n"]}
    assert with_static(TEXT, {}) == TEXT


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["sequence"], "is not a dimension and its size"),
        (["sequence=0"], "is not a dimension and its size"),
        (["a=1", "a=2"], "'a' has two sizes"),
        (["length=5"], "no input has a dynamic dimension 'length'"),
    ],
)
def test_what_fixes_nothing_is_refused(texts, match):
    with pytest.raises(UsageError, match=match) as caught:
        with_static(TEXT, parse_static(texts))
    assert caught.value.problems[0].where == "--static"


@pytest.mark.parametrize("size", [4, 41])
def test_a_size_that_the_model_does_not_take_is_refused(size):
    with pytest.raises(UsageError, match=f"n={size} is no size") as caught:
        with_static(BOUNDED, {"n": size})
    assert caught.value.problems[0].hint == "it takes sizes from 5 to 40"


def test_a_hint_names_every_size_but_the_number_of_samples():
    assert static_hint(TEXT) == "--static sequence=512"
    assert static_hint(BOUNDED) == "--static n=40"
    assert static_hint(with_static(TEXT, {"sequence": 8})) == ""
