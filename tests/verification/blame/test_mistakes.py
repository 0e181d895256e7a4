"""What the parts of the update that arrived are said to mean."""

from __future__ import annotations

import pytest

from lora_export.verification.blame.mistakes import describe_gain
from lora_export.verification.weights.tally import Tally

PARTS = {
    "right": ([1.0, 1.0], ""),
    "noise": ([1.004, 0.998], ""),
    "nothing": ([0.0, 0.001], "nothing was merged"),
    "one missing": ([1.0, 0.0, 1.0], "1 of 3 targets were not merged: 1"),
    "many missing": ([1.0, 0, 0, 0, 0, 0], "5 of 6 targets were not merged: 1, 2, 3 and 2 more"),
    "twice": ([2.0, 2.001], "the update 2 times: merged more than once"),
    "three times": ([3.0], "the update 3 times: merged more than once"),
    "another adapter": ([20.0, 20.0], "another alpha, rank, weight or adapter"),
    "half": ([0.5, 0.5], "every target holds 0.5 of the update"),
    "wrong sign": ([-1.0, -1.0], "every target holds -1 of the update"),
    "all differ": ([0.3, 2.0], ""),
    "no number": ([float("inf"), 1.0], ""),
}


@pytest.mark.parametrize(("parts", "expected"), PARTS.values(), ids=PARTS)
def test_the_parts_of_the_update(parts, expected):
    tallies = [Tally(str(place), along=part - 1, norm=1.0) for place, part in enumerate(parts)]
    detail = describe_gain(tallies)
    assert detail == expected == "" or (expected and expected in detail)
