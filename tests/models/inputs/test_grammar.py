"""The grammar of --input."""

import pytest

from lora_export.errors import UsageError
from lora_export.models.inputs.grammar import parse_input, parse_inputs
from lora_export.records import InputSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("input_ids=int64[batch,sequence]<30522",
         InputSpec("input_ids", "int64", ("batch", "sequence"), 30522)),
        ("image=float32[batch,1,8,8]", InputSpec("image", "float32", ("batch", 1, 8, 8))),
        ("scale=float64[]", InputSpec("scale", "float64", ())),
        ("flag=bool[n]", InputSpec("flag", "bool", ("n",))),
        (" ids = int32[ a , 3 ] < 7 ", InputSpec("ids", "int32", ("a", 3), 7)),
    ],
)  # fmt: skip
def test_the_grammar(text, spec):
    assert parse_input(text) == spec


@pytest.mark.parametrize(
    "text",
    ["", "ids", "ids=int64", "ids=int64[", "=int64[2]", "3d=int64[2]", "ids=long[2]",
     "ids=int64[0]", "ids=int64[-1]", "ids=int64[a,]", "ids=int64[a b c!]", "ids=int64[2]<",
     "ids=int64[2]<0", "ids=int64[2]<-1", "x=float32[2]<3", "x=bool[2]<2", "a.b=int64[2]",
     "ids=int64[2]<5 extra=int64[2]", "ids=int64[[2]]"],
)  # fmt: skip
def test_a_mistake_shows_the_grammar(text):
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert "name=dtype[dim,dim,...]<high" in str(caught.value)


def test_two_inputs_of_one_name_are_refused():
    with pytest.raises(UsageError, match="'a', and so does another"):
        parse_inputs(["a=int64[2]", "a=float32[3]"])
