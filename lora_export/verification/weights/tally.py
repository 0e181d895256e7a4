"""Sums up what blocks of rows show, and derives from it how a whole tensor differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, isnan, sqrt

from lora_export.verification.weights.survival import Stored

_GAIN_TOLERANCE = 1e-3
"""The share of the update that may be wrong beyond rounding: 0.1 %."""

_DEVIATIONS = 8.0
"""Standard deviations of the slope that chance may take."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a block of rows shows.

    The residual is what was written minus the exact element, rounded to the stored dtype. A row of
    the update is the direction in which a wrong scaling moves the result.
    """

    rows: int
    """The number of rows."""
    error: float
    """The largest distance of an element, in units of its derived bound."""
    distance: float
    """The largest distance of an element from the exact one, in the weight's own unit."""
    along: float
    """The sum of residual times update, over all elements."""
    norm: float
    """The sum of the squared updates."""
    variance: float
    """The variance of `along`, if each element may be rounded up or down by chance."""
    systematic: float
    """The largest part of `along` that the update's own error can cause."""
    changed: bool
    """Whether a row of the tensor differs from the base."""
    stored: Stored = field(default_factory=Stored)
    """What storing left of the update."""


@dataclass(slots=True)
class Tally:
    """What all rows of one tensor have shown so far; the fields are sums or maxima of Seen's."""

    name: str
    """The tensor's name."""
    rows: int = 0
    error: float = 0.0
    distance: float = 0.0
    along: float = 0.0
    norm: float = 0.0
    variance: float = 0.0
    systematic: float = 0.0
    changed: bool = False
    stored: Stored = field(default_factory=Stored)

    def add(self, seen: Seen) -> None:
        """Add what a further block of rows shows."""
        self.rows += seen.rows
        self.error = worse(self.error, seen.error)
        self.distance = worse(self.distance, seen.distance)
        self.along += seen.along
        self.norm += seen.norm
        self.variance += seen.variance
        self.systematic += seen.systematic
        self.changed = self.changed or seen.changed
        self.stored.add(seen.stored)

    @property
    def gain(self) -> float:
        """Return the share of the update that is too much: the slope of the residual along it.

        It is 0 for a right merge, 0.01 for a scaling 1 % too large, and -1 for a skipped module.
        """
        slope = self.along / self.norm if self.norm else 0.0
        return slope if isfinite(slope) else float("inf")

    @property
    def gain_tolerance(self) -> float:
        """Return how far `gain` may be from 0: by chance, by the update's error, and by 0.1 %."""
        if not self.norm:
            return _GAIN_TOLERANCE
        spread = _DEVIATIONS * sqrt(self.variance) / self.norm
        return spread + self.systematic / self.norm + _GAIN_TOLERANCE


def worse(one: float, other: float) -> float:
    """Return the larger number, and infinity instead of a NaN, which `max` might drop."""
    return max(one, inf if isnan(other) else other)
