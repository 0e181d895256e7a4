"""The grammar in which a model's inputs are declared, by --input or beside a factory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_export.errors import UsageError
from lora_export.records import InputSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

GRAMMAR = "name=dtype[dim,dim,...]<high, e.g. input_ids=int64[batch,sequence]<30522"
"""The grammar in words, for hints."""

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
DTYPES = (*FLOATS, *INTEGERS, "bool")
"""The dtypes of inputs, by torch's names: those that ONNX graphs take."""

_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>\w+)\[(?P<dims>[^\]]*)\](?:<(?P<high>\d+))?")


def parse_input(text: str) -> InputSpec:
    """Read one `--input` value.

    Grammar: `name=dtype[dim,dim,...]<high`. A dim is a positive number (fixed) or a name
    (dynamic); `[]` is a scalar; `<high` bounds an integer input from above, exclusively.

    Raises:
        UsageError: the text does not follow the grammar, which the hint shows.
    """
    found = _INPUT.fullmatch(text.replace(" ", ""))
    if not found:
        raise _mistake(text, "is not an input description")
    dtype, high = found["dtype"], found["high"]
    if dtype not in DTYPES:
        raise _mistake(text, f"names the dtype {dtype!r}, which is none of {', '.join(DTYPES)}")
    if high is not None and (dtype not in INTEGERS or int(high) == 0):
        raise _mistake(text, "bounds an input by <high, which only integer inputs have, from 1 on")
    dims = tuple(_dim(text, part) for part in found["dims"].split(",")) if found["dims"] else ()
    return InputSpec(found["name"], dtype, dims, None if high is None else int(high))


def parse_inputs(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Read all `--input` values of a command.

    Raises:
        UsageError: a text breaks the grammar, or two texts name the same input.
    """
    specs = tuple(map(parse_input, texts))
    names = [spec.name for spec in specs]
    for spec, text in zip(specs, texts, strict=True):
        if names.count(spec.name) > 1:
            raise _mistake(text, f"describes the input {spec.name!r}, and so does another --input")
    return specs


def _dim(text: str, part: str) -> int | str:
    if part.isdecimal() and int(part) > 0:
        return int(part)
    if part.isidentifier():
        return part
    raise _mistake(text, f"has the dimension {part!r}, neither a positive number nor a name")


def _mistake(text: str, problem: str) -> UsageError:
    return UsageError(
        f"{text!r} {problem}", where="--input", hint=f"write {GRAMMAR}", cause="usage/model-inputs"
    )
