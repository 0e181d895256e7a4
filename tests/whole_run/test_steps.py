"""A quadratic or endless piece of code is told from a linear one, on a machine of any speed."""

from __future__ import annotations

from contextlib import suppress

import pytest

from whole_run.steps import at_most, count_steps


def quadratic(size):
    return [one for one in range(size) if all(other != size for other in range(size))]


def linear(size):
    seen = set()
    for one in range(size):
        seen.add(one % 7)
    return len(seen)


@pytest.mark.parametrize(("function", "least", "most"), [(linear, 1.9, 2.1), (quadratic, 3.8, 4.2)])
def test_steps_grow_as_the_work_does(function, least, most):
    small, large = (count_steps(lambda size=size: function(size)) for size in (200, 400))
    assert least < large / small < most


def test_what_never_ends_is_ended():
    def endless():
        while True:
            with suppress(Exception):  # even where errors are swallowed
                linear(3)

    with pytest.raises(pytest.fail.Exception, match=r"more than 10,000 steps"), at_most(10_000):
        endless()
