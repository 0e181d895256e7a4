"""What the rows of a merged tensor have shown, and what that says of the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, isnan, sqrt

_GAIN_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Seen:
    """What some rows show. error: in units of the derived bound, distance: as it is.

    along: sum of residual times update. norm: sum of squared updates. variance, systematic: of
    `along`, when each element may round either way.
    """

    rows: int
    error: float
    distance: float
    along: float
    norm: float
    variance: float
    systematic: float
    changed: bool


@dataclass(slots=True)
class Tally:
    """What all rows of one tensor have shown so far."""

    name: str
    rows: int = 0
    error: float = 0.0
    distance: float = 0.0
    along: float = 0.0
    norm: float = 0.0
    variance: float = 0.0
    systematic: float = 0.0
    changed: bool = False

    def add(self, seen: Seen) -> None:
        """Take more rows in."""
        self.rows += seen.rows
        self.error = worse(self.error, seen.error)
        self.distance = worse(self.distance, seen.distance)
        self.along += seen.along
        self.norm += seen.norm
        self.variance += seen.variance
        self.systematic += seen.systematic
        self.changed = self.changed or seen.changed

    @property
    def gain(self) -> float:
        """The part of the update that is too much: the slope of the residual along the update.

        0 for a right merge, 0.01 for a scaling 1 % too large, -1 for a skipped module.
        """
        slope = self.along / self.norm if self.norm else 0.0
        return slope if isfinite(slope) else float("inf")

    @property
    def gain_tolerance(self) -> float:
        """Eight standard deviations of the slope, the update's own error, and 0.1 %."""
        if not self.norm:
            return _GAIN_TOLERANCE
        spread = 8.0 * sqrt(self.variance) / self.norm
        return spread + self.systematic / self.norm + _GAIN_TOLERANCE


def worse(one: float, other: float) -> float:
    """The larger; what is no number is worse than any, and `max` would drop it."""
    return max(one, inf if isnan(other) else other)
