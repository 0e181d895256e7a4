"""Which mistake a factor points at, and what is named where several give the same factor."""

from __future__ import annotations

import pytest
from kind_rows import ROWS

from lora_export.verification.blame.diagnosis.scaling_causes import Wrong, causes_of, part_words


def update(rank, alpha, rule="alpha / rank", weight=1.0):
    made = ROWS["linear"].delta("linear", rank)
    scaling = alpha / (rank if rule == "alpha / rank" else rank**0.5)
    values = {"rank": rank, "alpha": alpha, "scaling": scaling, "rule": rule, "weight": weight}
    return type(made)(**{**{n: getattr(made, n) for n in made.__slots__}, **values})


FACTORS = {
    "twice": ([(8, 24, 2.0)], ["merged-twice"]),
    "twice or rslora": ([(4, 12, 2.0)], ["merged-twice", "rslora-assumed"]),
    "rslora, of another rank as well": ([(4, 12, 2.0), (16, 48, 4.0)], ["rslora-assumed"]),
    "twice or scaling 1": ([(8, 4, 2.0)], ["merged-twice", "alpha-ignored"]),
    "twice, by another rank": ([(8, 4, 2.0), (8, 24, 2.0)], ["merged-twice"]),
    "half or scaling 1": ([(8, 16, 0.5)], ["alpha-ignored"]),
    "rare ones alone": ([(8, 24, 3.0)], ["merged-repeatedly"]),
    "a rare one": ([(8, 56, 7.0)], ["scaling-twice"]),
    "two factors of no mistake": ([(8, 24, 2.0), (8, 24, 0.7)], []),
    "none": ([(8, 24, 1.37)], []),
}


@pytest.mark.parametrize(("found", "codes"), FACTORS.values(), ids=FACTORS)
def test_the_mistakes_that_explain_every_factor(found, codes):
    wrong = [Wrong(update(rank, alpha), factor) for rank, alpha, factor in found]
    assert [code for code, _ in causes_of(wrong)] == codes


def test_rslora_asks_for_the_root():
    wrong = [Wrong(update(16, 16, "alpha / sqrt(rank)"), 0.25)]
    assert [code for code, _ in causes_of(wrong)] == ["rslora-ignored", "alpha-ignored"]


def test_a_weight_that_was_left_out_or_given_twice():
    for factor, code in ((0.3, "weight-twice"), (1 / 0.3, "weight-ignored")):
        assert causes_of([Wrong(update(8, 24, weight=0.3), factor)])[0][0] == code


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(2, 2, "twice the update"), (0.5, 0.5, "0.5 of the update"), (3, 3, "3 times the update"),
     (0.5, 2, "0.5 to 2 times the update"), (-1, -1, "-1 of the update")],
)  # fmt: skip
def test_how_much_of_the_update_is_there(low, high, words):
    assert part_words(low, high) == words
