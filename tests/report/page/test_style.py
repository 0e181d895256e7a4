"""The contrast of the page's colours, by WCAG 2.2, on a light and on a dark screen."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from lora_export.report.page.style import DARK, LIGHT, ON, fragment_style, picture_style, style

THEMES = {"light": LIGHT, "dark": DARK}
TEXT, GRAPHIC = 4.5, 3.0
"""The least contrast of text (1.4.3, AA) and of what a picture shows (1.4.11)."""

PAIRS = [(ground, ink) for ground, inks in ON.items() for ink in inks]
DRAWN = ("ok", "bad", "warn", "info", "effect", "noise")


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_measure_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == 21
    assert round(contrast("#777777", "#ffffff"), 2) == 4.48


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("ground", "ink"), PAIRS)
def test_text_stands_out(theme, ground, ink):
    colours = THEMES[theme]
    assert contrast(colours[ground], colours[ink]) >= TEXT


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ground", ["card", "ok-ground", "rest"])
@pytest.mark.parametrize("drawn", DRAWN)
def test_what_is_drawn_stands_out(theme, ground, drawn):
    colours = THEMES[theme]
    assert contrast(colours[ground], colours[drawn]) >= GRAPHIC


@pytest.mark.parametrize("theme", THEMES)
def test_a_larger_update_has_the_stronger_colour(theme):
    colours = THEMES[theme]
    from_card = [contrast(colours["card"], colours[f"h{step}"]) for step in range(7)]
    assert from_card == sorted(from_card)
    assert all(after / before > 1.15 for before, after in pairwise(from_card))


@pytest.mark.parametrize("sheet", [style(), picture_style(), fragment_style(".place")])
def test_every_colour_that_is_used_is_there_in_both_themes(sheet):
    used = set(re.findall(r"var\(--([\w-]+)\)", sheet)) - {"mark"}
    light, dark = sheet.split("@media (prefers-color-scheme:dark)")[:2]
    for part in (light, dark):
        assert used <= set(re.findall(r"--([\w-]+):", part))
    assert set(LIGHT) == set(DARK)
    # No colour but those that are named, so that each has its contrast checked here.
    rules = re.sub(r"--[\w-]+:#[0-9a-f]{6};", "", sheet)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b", rules)
