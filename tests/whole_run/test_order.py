"""The tests of a run are all there, in parts that end with the short ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from whole_run.order import MANY, ending_with_short


@dataclass(frozen=True)
class Item:
    nodeid: str


def items(name, count):
    return [Item(f"{name}[{case}]") for case in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_each_part_ends_with_the_short_ones(workers):
    short, long = items("a.py::test_short", 10 * MANY), items("a.py::test_long", MANY - 1)
    alone = [Item("b.py::test_alone")]
    found = ending_with_short([*short, *long, *alone], workers)
    assert sorted(found, key=str) == sorted([*short, *long, *alone], key=str)
    assert [one for one in found if one in short] == short
    assert [one for one in found if one not in short] == [*long, *alone]
    is_short = [one in short for one in found]
    assert is_short[-1]
    assert sum(now < before for now, before in zip(is_short[1:], is_short, strict=False)) == (
        workers - 1
    )


def test_without_short_ones_the_order_stays():
    long = items("a.py::test_long", 9)
    assert ending_with_short(long, 2) == long
