"""The first gap that stands out of noise, and what counts as a distance."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from lora_export.verification.blame.gap import Gap, first_diverging, unmasked_distance


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([], None),
        ([(0, 9), (9, 8)], None),
        ([(0, 1), (1, 40), (40, 90), (0, 60)], 1),
        ([(1, 12), (12, 1e5), (1e5, 1e5), (1, 2e5)], 1),  # noise before a fault of a thousandfold
        ([(0, 12), (12, 30), (30, 30)], 0),  # all of a size: the first
        ([(5, 1e6), (1e6, 1e30), (0, 1e30)], 0),  # what a fault grows to is not where it began
    ],
)
def test_the_first_fault_stands_out_from_noise(ratios, expected):
    gaps = [Gap(str(at), 0.0, 0.0, *pair) for at, pair in enumerate(ratios)]
    found = first_diverging(gaps)
    assert (found and int(found.module)) == expected


LOW = np.finfo(np.float32).min


@pytest.mark.parametrize(
    ("expected", "actual", "far"),
    [
        ([1.0, LOW], [1.5, -inf], 0.5),  # two ways to write a mask
        ([1.0, 0.25], [1.5, LOW], 0.5),  # only one side writes it
        ([1.0, -inf], [1.0, LOW], 0.0),
        ([1.0, 2.0], [1.0, inf], inf),  # an overflow is no mask
        ([1.0, 2.0], [1.0, float("nan")], inf),
    ],
)
def test_what_a_mask_hides_is_no_difference(expected, actual, far):
    assert unmasked_distance(np.float32(expected), np.float32(actual)) == far
