"""A copied range is equal to its source in every byte, or its tensor is named."""

from math import inf

import pytest

from lora_export.verification.weights.tally import Tally
from lora_export.verification.weights.whole_weights import WeightProof, _check_gain


def named(source, written):
    proof = WeightProof(plan=None)
    proof.copied("some.weight", bytes(source), memoryview(bytearray(written)))
    return proof.different


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 4099])
def test_equal_bytes_are_equal(length):
    content = bytes(number % 251 for number in range(length))
    assert named(content, content) == []


@pytest.mark.parametrize("length", [1, 7, 8, 9, 23])
def test_one_other_byte_is_seen_wherever_it_is(length):
    content = bytes(number % 251 for number in range(length))
    for place in range(length):
        other = bytearray(content)
        other[place] ^= 1
        assert named(content, other) == ["some.weight"]


@pytest.mark.parametrize("lost", [1, 8, 11])
def test_what_ends_early_is_not_equal(lost):
    content = bytes(64)
    assert named(content[:-lost], content) == ["some.weight"]
    assert named(content, content[:-lost]) == ["some.weight"]


def test_a_tolerance_that_is_no_finite_number_is_none():
    tally = Tally("fc.weight", along=0.5, norm=1.0, variance=inf)
    assert not _check_gain([Tally("other.weight"), tally]).passed
