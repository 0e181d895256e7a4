"""The bounds of work: far above real files, and close to what costs two seconds."""

from __future__ import annotations

import pytest

from lora_export.checkpoint.limits import (
    BYTES_A_TENSOR,
    HEADER,
    JSON_DEPTH,
    TENSORS,
    JsonBounds,
    bound_json,
    bound_tensors,
    is_too_deep,
)
from lora_export.errors import LimitError

SMALL = JsonBounds(values=5, size=40, wide=20)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a":[1,2,3,4]}', "6 values"),
        (b'"' + b"x" * 50 + b'"', "52 bytes"),
        ('"\xe9' + "x" * 20 + '"', "24 bytes"),
    ],
)
def test_too_much_json_is_refused(content, reason):
    content = content if isinstance(content, bytes) else content.encode()
    with pytest.raises(LimitError, match=reason) as raised:
        bound_json(content, "place", SMALL)
    assert raised.value.problems[0].where == "place"
    assert raised.value.problems[0].hint


def test_json_within_the_bounds_passes():
    bound_json(b'{"a":[1,2,3]}', "", SMALL)
    bound_json(b'{"a":[1,2,3,4,5,6]}', "", SMALL.plus(100_000))


def test_the_largest_headers_that_are_known_pass():
    """An adapter of rank 8 on every expert of a model with 138,000 factors."""
    factors = 138_000
    size = factors * 16_000
    assert factors * 13 < HEADER.plus(size).values
    bound_tensors(factors, size, "")


def test_tensors_are_bound_by_the_size_of_their_file():
    bound_tensors(TENSORS, 0, "")
    bound_tensors(TENSORS + 5, 5 * BYTES_A_TENSOR, "")
    with pytest.raises(LimitError, match="20,001 tensors in 10 bytes"):
        bound_tensors(TENSORS + 1, 10, "")


def test_depth_is_counted_through_lists_and_objects():
    value: object = 1
    for place in range(JSON_DEPTH):
        assert not is_too_deep(value)
        value = [value, 2] if place % 2 else {"a": value, "b": []}
    assert is_too_deep([value])
