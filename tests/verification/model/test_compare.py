from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lora_export.verification.model.compare import (
    Distance,
    distance,
    distances,
    finite_distance,
    has_nan,
    join_batches,
    largest,
    nan_counts,
    same_nan,
    worst_of,
)

FLOATS = arrays(np.float32, (2, 3), elements=st.floats(width=32))


def f(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("left", "right", "worst", "index"),
    [
        (f(1, 2, 3), f(1, 2, 3), 0.0, (0,)),
        (f(1, 2, 3), f(1, 2.5, 3), 0.5, (1,)),
        (f(1, -2, 3), f(1, 2, 2), 4.0, (1,)),
        (f(inf, -inf), f(inf, -inf), 0.0, (0,)),
        (f(-0.0), f(0.0), 0.0, (0,)),
        (f(), f(), 0.0, ()),
        (np.array([[1, 2], [3, 4]]), np.array([[1, 2], [9, 4]]), 6.0, (1, 0)),
        (np.array([True, False]), np.array([True, True]), 1.0, (1,)),
        (np.float32(2), np.float32(5), 3.0, ()),
        (f(1.0), np.array([1.0 + 1e-9]), 1e-9, (0,)),
        (np.array([1 + 1j]), np.array([1 + 3j]), 2.0, (0,)),
        (np.array([3 + 4j], np.complex64), np.array([0j], np.complex64), 5.0, (0,)),
    ],
)
def test_the_largest_difference_and_its_place(left, right, worst, index):
    found = distance({"y": np.asarray(left)}, {"y": np.asarray(right)})
    assert found.worst == pytest.approx(worst, rel=1e-5)
    assert (found.output, found.index, found.detail) == ("y", index, "")


@pytest.mark.parametrize(
    ("left", "right", "detail"),
    [
        (f(1, nan), f(1, 2), "2.0 where the reference model gives NaN"),
        (f(1, 2), f(1, nan), "nan where 2.0 is expected"),
        (f(1, inf), f(1, -inf), "-inf where inf"),
        (f(1, inf), f(1, 3e38), "where inf"),
    ],
)
def test_what_is_no_number_is_infinitely_far(left, right, detail):
    found = distance({"y": left}, {"y": right})
    assert (found.worst, found.index) == (inf, (1,))
    assert detail in found.detail


def test_nan_at_the_same_places_is_equal():
    right = {"y": np.array([[nan, nan], [1, 2]], np.float32)}
    near = {"y": np.array([[nan, nan], [1, 2.5]], np.float32)}
    assert distance(right, near) == Distance(0.5, "y", (1, 1))
    assert nan_counts([right, right], [near, near]) == {"y": (4, 8)}
    assert same_nan([right], [near])
    assert has_nan(right)


@pytest.mark.parametrize("other", [f(1, 2), f(nan, 2), f(nan, nan)])
def test_an_output_of_nothing_but_nan_is_equal_to_none(other):
    assert distance({"y": f(nan, nan)}, {"y": other}).worst == inf


def test_two_outputs_of_nothing_but_nan_are_named():
    assert "nothing but NaN" in distance({"y": f(nan, nan)}, {"y": f(nan, nan)}).detail


@pytest.mark.parametrize("other", [f(1, 2), f(2, nan), f(nan, nan)])
def test_nan_at_another_place_is_found(other):
    right = f(nan, 2)
    assert distance({"y": right}, {"y": other}).worst == inf
    assert not same_nan([{"y": right}], [{"y": other}])


def test_numbers_without_nan_are_not_counted():
    runs = [{"y": f(1, nan), "n": np.array([1, 2])}, {"y": f(1), "n": np.array([3])}]
    assert nan_counts(runs, [{"y": f(1, 2)}, {}]) == {}
    assert not has_nan({"y": f(1, inf), "n": np.array([1])})


def test_the_largest_difference_of_what_is_finite():
    assert finite_distance(f(1, inf, 3, nan), f(1.5, 2, 3, nan)) == 0.5
    assert finite_distance(f(inf), f(1)) == 0


@pytest.mark.parametrize(
    ("left", "right", "detail"),
    [
        ({"y": f(1)}, {}, "missing"),
        ({}, {"y": f(1)}, "no such output"),
        ({"y": f(1)}, {"y": f(1, 2)}, "shape (2,) where (1,)"),
        ({"y": f(1)}, {"y": np.array([1])}, "dtype int64 where float32"),
    ],
)
def test_a_difference_in_structure_is_an_infinite_distance(left, right, detail):
    found = distance(left, right)
    assert found.worst == inf
    assert detail in found.detail


@given(FLOATS, FLOATS)
def test_a_distance_is_symmetric_and_zero_only_for_equals(left, right):
    there, back = (distance({"y": a}, {"y": b}) for a, b in ((left, right), (right, left)))
    assert (there.worst, there.index) == (back.worst, back.index)
    same = np.array_equal(left, right, equal_nan=True) and not np.isnan(left).all()
    assert (there.worst == 0) == same
    assert not np.isnan(there.worst)


def test_the_worst_output_is_told():
    found = distances({"a": f(1), "b": f(1)}, {"a": f(2), "b": f(4)})
    assert {name: one.worst for name, one in found.items()} == {"a": 1.0, "b": 3.0}
    assert worst_of(list(found.values())).output == "b"
    assert worst_of([]) == Distance(0.0)
    assert str(Distance(1.0, "b", (0, 2))) == "b[0, 2]"
    assert str(Distance(1.0, "b")) == "b"


def test_the_largest_value_ignores_what_is_not_finite():
    assert largest({"y": f(1, -7, inf, nan)}, "y") == 7.0
    assert largest({"y": f(nan)}, "y") == 0.0


def test_samples_are_joined_where_they_count():
    whole = {"y": np.zeros((2, 3)), "size": np.zeros(()), "table": np.zeros((5, 3))}
    parts = [{"y": np.full((1, 3), n), "size": np.zeros(()), "table": np.zeros((5, 3))}
             for n in range(2)]  # fmt: skip
    joined = join_batches(parts, whole)
    assert list(joined) == ["y"]
    assert joined["y"][:, 0].tolist() == [0, 1]
