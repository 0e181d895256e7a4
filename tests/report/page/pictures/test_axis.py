from __future__ import annotations

import re
from math import inf, nan

import pytest

from lora_export.report.page.measures import Measures
from lora_export.report.page.pictures.axis import axis_picture, axis_words


def dots(picture: str) -> dict[str, float]:
    """The place of each dot, in percent, by its class."""
    found = re.findall(r'<circle class="dot (\w+)" cx="([\d.]+)%"', picture)
    return {kind: float(place) for kind, place in found}


def measures(noise=2e-6, error=3e-6, allowed=4e-5, effect=6.0) -> Measures:
    return Measures("logits", noise, error, allowed, effect)


def test_the_four_sizes_stand_on_one_logarithmic_axis():
    at = dots(axis_picture(measures(1e-6, 1e-5, 1e-4, 1e-2)))
    assert list(at) == ["noise", "ok", "limit", "effect"]
    decade = at["ok"] - at["noise"]
    assert at["limit"] - at["ok"] == pytest.approx(decade, abs=0.02)
    assert at["effect"] - at["limit"] == pytest.approx(2 * decade, abs=0.03)


def test_an_error_beyond_what_is_allowed_is_red_and_right_of_the_border():
    picture = axis_picture(measures(error=1e-3))
    at = dots(picture)
    assert at["bad"] > at["limit"]
    [border] = re.findall(r'<line class="border" x1="([\d.]+)%"', picture)
    assert float(border) == at["limit"]


SIZES = [0.0, 1e-320, 1e-9, 0.5, 1.0, 3e4, 1e300, inf, nan]


@pytest.mark.parametrize("error", SIZES)
@pytest.mark.parametrize("effect", SIZES)
@pytest.mark.parametrize("noise", [0.0, 1e-7, inf])
def test_every_size_has_a_place_inside_of_the_picture(noise, error, effect):
    found = Measures("y", noise, error, 1e-4, effect)
    picture = axis_picture(found)
    places = [float(x) for x in re.findall(r'(?:x|x1|x2|cx)="([\d.]+)%"', picture)]
    assert all(0 <= place <= 100 for place in places)
    assert len(re.findall("<circle", picture)) == 4
    assert len(re.findall('class="power"', picture)) <= 8
    assert axis_words(found)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (measures(error=0.0), "The result and the unmerged model give the same numbers."),
        (measures(), "The result is off by 3.0 \u00d7 10\u207b\u2076: 8 % of what is allowed."),
        (measures(error=1e-6), "allowed, and by no more than runs that are equally right."),
        (measures(error=4.0), "The result is off by 4: 100,000 times what is allowed."),
        (measures(), "150,000 times what is allowed: a merge without it could not pass."),
        (measures(effect=1e-5), "the outputs alone do not show the adapter."),
        (measures(allowed=0.0), "more than what is allowed"),
    ],
)
def test_the_words_say_what_the_picture_shows(found, words):
    assert words in axis_words(found)


def test_a_failed_merge_is_not_praised():
    assert "could not pass" not in axis_words(measures(error=4.0))
