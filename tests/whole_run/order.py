"""The order of a run's tests: every worker ends with short ones.

xdist's worksteal gives each worker one part of the list. A worker that is done takes tests from
another, but never the last two. Where these are long, one worker is busy with them and the others
have nothing to do.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pytest

    T = TypeVar("T")

MANY = 50
"""A test of so many cases is short: else all of them would take too long."""


def ending_with_short(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests in so many parts, those of many cases at the end of each part."""
    names = [item.nodeid.partition("[")[0] for item in items]
    cases = Counter(names)
    short = [item for item, name in zip(items, names, strict=True) if cases[name] >= MANY]
    others = [item for item, name in zip(items, names, strict=True) if cases[name] < MANY]
    parts = zip(_parts(others, workers), _parts(short, workers), strict=True)
    return [item for long, ending in parts for item in (*long, *ending)]


def _parts(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    ends = [len(items) * place // count for place in range(count + 1)]
    return (items[start:end] for start, end in pairwise(ends))
