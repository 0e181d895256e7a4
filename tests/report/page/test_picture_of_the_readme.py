"""docs/report.svg is what docs/make_picture.py draws of today's program."""

from __future__ import annotations

import importlib.util
import re
from xml.etree import ElementTree as ET

import pytest


@pytest.fixture(scope="module")
def script(root):
    place = root / "docs" / "make_picture.py"
    spec = importlib.util.spec_from_file_location("make_picture", place)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def drawn(text):
    """The picture without its numbers, and the place of each dot."""
    dots = [float(place) for place in re.findall(r'cx="([\d.]+)%"', text)]
    plain = re.sub(r"<title>.*?</title>|aria-label=\"[^\"]*\"", "", text)
    # Which powers of ten have a label depends on the smallest noise, as the places do.
    plain = re.sub(r'<line class="tick".*?</text>', "", plain)
    return re.sub(r"[\d.,]+|\u00d7 10[\u207b\u2070-\u2079\u00b9\u00b2\u00b3]+", "", plain), dots


def test_the_picture_is_the_program_s_own(script, root):
    there = (root / "docs" / "report.svg").read_text(encoding="utf-8")
    made = script.picture()
    ET.fromstring(made)  # noqa: S314 - our own text
    (words, places), (now, new) = drawn(there), drawn(made)
    assert re.sub(r"\s+", " ", words) == re.sub(r"\s+", " ", now)
    # Noise and error are those of the processor: half a decade is a few percent of the width.
    assert new == pytest.approx(places, abs=8)
    assert len(new) == 4
