"""Names the mistakes that give an update a factor: another rule of the scaling, a second merge."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.records import Delta

_ALIKE = 0.01
"""How far a factor may be from one that a mistake gives, as a share of it."""


_RARE = frozenset({"rank-ignored", "alpha-lost", "scaling-inverted", "scaling-twice"})
"""Codes of mistakes that are hardly made."""

_TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}


@dataclass(frozen=True, slots=True)
class Wrong:
    """An update that is in its weight with a factor."""

    delta: Delta
    factor: float
    """What was found; never near 1."""


def part_words(low: float, high: float, what: str = "the update") -> str:
    """Return how much of an update is there: `0.5 of the update`, `twice the update`."""
    least, most = f"{low:.3g}", f"{high:.3g}"
    if least == most == "2":
        return f"twice {what}"
    part = least if least == most else f"{least} to {most}"
    return f"{part} {'times' if high > 1 else 'of'} {what}"


def causes_of(found: Sequence[Wrong]) -> list[tuple[str, str]]:
    """Return (code, words) of every likely mistake that explains all factors; none without one.

    The words are the end of a sentence. Several mistakes may give the same factor, such as 2. A
    rare one is named only where no other explains the factors.
    """
    each = [dict(_explanations(one)) for one in found]
    common = [(code, words) for code, words in each[0].items() if all(code in one for one in each)]
    return [pair for pair in common if pair[0] not in _RARE] or common


def _explanations(one: Wrong) -> Iterator[tuple[str, str]]:
    for code, factor, words in _mistakes(one.delta):
        # A mistake that changes nothing here explains nothing.
        if abs(factor - 1) > _ALIKE and abs(one.factor - factor) <= _ALIKE * abs(factor):
            yield code, words


def _mistakes(delta: Delta) -> Iterator[tuple[str, float, str]]:
    """Yield (code, the factor that it gives, words) of every mistake."""
    for count, words in _TIMES.items():
        code = "merged-twice" if count == 2 else "merged-repeatedly"
        yield code, count, f"the update was merged {words}"
    yield "subtracted", -1.0, "the update was subtracted"
    weight, scaling = delta.weight, delta.scaling
    if weight != 1:
        yield "weight-ignored", 1 / weight, f"as with --weight {weight:g} left out"
        yield "weight-twice", weight, f"as with --weight {weight:g} applied twice"
    if delta.rule != "1" and delta.alpha and scaling:
        yield from _other_scalings(delta)


def _other_scalings(delta: Delta) -> Iterator[tuple[str, float, str]]:
    """Yield the same of scalings that alpha and rank would give by another rule."""
    alpha, rank, scaling = delta.alpha, delta.rank, delta.scaling
    if delta.rule == "alpha / sqrt(rank)":
        words = "as with alpha/r, where rslora asks alpha/sqrt(r)"
        yield "rslora-ignored", alpha / rank / scaling, words
    else:
        words = "as with alpha/sqrt(r), rslora's scaling, in place of alpha/r"
        yield "rslora-assumed", alpha / sqrt(rank) / scaling, words
    yield "alpha-ignored", 1 / scaling, "as with lora_alpha ignored (scaling 1)"
    yield "rank-ignored", alpha / scaling, "as with an alpha that was not divided by the rank"
    yield "alpha-lost", 1 / rank / scaling, "as with an alpha of 1"
    yield "scaling-inverted", rank / alpha / scaling, "as with r/alpha in place of alpha/r"
    yield "scaling-twice", scaling, "as with the scaling applied twice"
