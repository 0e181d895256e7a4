"""The whole proof in one picture: noise, error, what is allowed and the effect on one log axis."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING

from lora_export.report.page.escape import html
from lora_export.report.page.measures import of_allowed, size, ten_to, times
from lora_export.report.page.style import picture_style

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.report.page.measures import Measures

_LEFT, _RIGHT = 1.5, 98.5
"""Where the axis begins and ends, in percent of the picture's width: a dot needs room around it."""

_LANE = 46
"""Pixels of height for each size."""

_TOP = 26
"""Pixels above the first lane, for the words at the border."""

_ROOM = 18
"""Percent of the width that a word at the border takes on a phone."""

_MOST_TICKS = 6
"""Labelled powers of ten at most: so many fit into 340 pixels."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Powers of ten from left to right."""

    first: int
    last: int

    def place(self, value: float) -> float:
        """Return where a size lies, in percent of the width; 0 and infinity lie at the ends."""
        if value <= 0:
            return _LEFT
        if not isfinite(value):
            return _RIGHT
        share = (log10(value) - self.first) / (self.last - self.first)
        return _LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0)

    def ticks(self) -> range:
        """Return the powers that have a label."""
        return range(self.first, self.last + 1, ceil((self.last - self.first) / _MOST_TICKS))


def axis_picture(found: Measures) -> str:
    """Return the picture as an svg element; its classes are those of `style`."""
    lanes = [
        ("rounding noise", found.noise, "noise"),
        ("measured error", found.error, "ok" if found.passed else "bad"),
        ("allowed", found.allowed, "limit"),
        ("adapter's effect", found.effect, "effect"),
    ]
    scale = _scale([value for _, value, _ in lanes])
    bottom = _TOP + _LANE * len(lanes)
    label = "; ".join(f"{name} {size(value)}" for name, value, _ in lanes)
    parts = [
        f'<svg class="axis" role="img" width="100%" height="{bottom + 24}"',
        f' aria-label="{html(label)}">',
        *_border(scale.place(found.allowed), bottom),
        *_ticks(scale, bottom),
    ]
    for number, (name, value, kind) in enumerate(lanes):
        parts += _lane(_TOP + _LANE * number, scale, name, value, kind)
    return "".join([*parts, "</svg>"])


def _scale(values: list[float]) -> _Scale:
    known = [log10(value) for value in values if value > 0 and isfinite(value)] or [0.0]
    first, last = floor(min(known) - 0.3), ceil(max(known) + 0.2)
    return _Scale(first, max(last, first + 2))


def _border(place: float, bottom: int) -> Iterator[str]:
    """Yield the ground on which an error passes, and the line where that ends."""
    x = f"{place:.2f}%"
    yield f'<rect class="ground" x="0" y="{_TOP - 8}" width="{x}" height="{bottom - _TOP + 8}"/>'
    yield f'<line class="border" x1="{x}" x2="{x}" y1="4" y2="{bottom}"/>'
    if place > _ROOM:
        yield f'<text class="side" x="{x}" dx="-7" y="13" text-anchor="end">passes</text>'
    if place < 100 - _ROOM:
        yield f'<text class="side" x="{x}" dx="7" y="13">is refused</text>'


def _ticks(scale: _Scale, bottom: int) -> Iterator[str]:
    for power in scale.ticks():
        x = scale.place(10.0**power)
        at_end = {_LEFT: "start", _RIGHT: "end"}.get(x, "middle")
        # At the ends a label is aligned to the picture's border, and not to its tick.
        text_x = {_LEFT: 0.0, _RIGHT: 100.0}.get(x, x)
        yield (
            f'<line class="tick" x1="{x:.2f}%" x2="{x:.2f}%" y1="{_TOP - 8}" y2="{bottom + 4}"/>'
            f'<text class="power" x="{text_x:.2f}%" y="{bottom + 18}" '
            f'text-anchor="{at_end}">{ten_to(power)}</text>'
        )


def _lane(top: int, scale: _Scale, name: str, value: float, kind: str) -> Iterator[str]:
    x, middle = f"{scale.place(value):.2f}%", top + 28
    yield f'<text class="name" x="6" y="{top + 15}">{html(name)}</text>'
    yield (
        f'<text class="value" x="100%" dx="-6" y="{top + 15}" text-anchor="end">'
        f"{size(value)}</text>"
    )
    yield f'<line class="bar {kind}" x1="{_LEFT}%" x2="{x}" y1="{middle}" y2="{middle}"/>'
    yield f'<circle class="dot {kind}" cx="{x}" cy="{middle}" r="6"/>'


def axis_file(found: Measures, title: str) -> str:
    """Return the picture as an SVG file of its own, for a page that shows it as an image."""
    height = _TOP + _LANE * 4 + 24
    inner = axis_picture(found).replace("<svg ", '<svg x="2%" y="16" ', 1)
    inner = inner.replace('width="100%"', 'width="96%"', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height + 28}" role="img">'
        f"<title>{html(title)}</title>\n<style>{picture_style()}</style>\n"
        f'<rect class="card" width="100%" height="100%"/>\n{inner}\n</svg>\n'
    )


def axis_words(found: Measures) -> str:
    """Return what the picture shows, in sentences of plain text."""
    if found.error == 0:
        return f"The result and the unmerged model give the same numbers. {_effect_words(found)}"
    share = of_allowed(found.error / found.allowed) if found.allowed else "more than"
    right = ", and by no more than runs that are equally right"
    tail = right if found.passed and found.error <= found.noise else ""
    first = f"The result is off by {size(found.error)}: {share} what is allowed{tail}."
    return f"{first} {_effect_words(found)}"


def _effect_words(found: Measures) -> str:
    moved = f"The adapter moves {found.output} by up to {size(found.effect)}"
    if not found.effect > found.allowed > 0:
        return f"{moved}, which would pass as well: the outputs alone do not show the adapter."
    words = f"{moved}, {times(found.effect / found.allowed)} times what is allowed"
    return f"{words}: a merge without it could not pass." if found.passed else f"{words}."
