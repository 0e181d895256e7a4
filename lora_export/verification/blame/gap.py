"""Measures how far two runs of a module are apart, and finds the first module that diverges.

Distances are in units of the rounding noise there. Which runs are compared is bisect's concern.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

from lora_export.verification.model.compare import distances, largest
from lora_export.verification.model.tolerance import EPS, FACTOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lora_export.verification.model.module_calls import Arrays

HIGHEST = 1e30
"""The largest ratio, so that a NaN can be ranked beside a number.

A value of this size or above in a tensor is a mask, not a result."""

SURE = 1e4
"""A ratio that no noise reaches; the search never starts above it.

A fault grows on its way through a model. A higher start would find a later module first."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two runs are apart in one call of a module."""

    module: str
    """The module's path in the torch model; "" is the root."""
    inputs: float
    """The largest distance of its inputs, in their own unit."""
    outputs: float
    """The largest distance of its outputs, in their own unit."""
    input_ratio: float
    """The largest distance of its inputs in units of the rounding noise there."""
    output_ratio: float
    """The largest distance of its outputs in units of the rounding noise there."""
    node: str = ""
    """The graph's node that computes the output; "" between two torch models."""

    def __str__(self) -> str:
        return f"inputs agree to {self.inputs:.1g}, output differs by {self.outputs:.2g}"


def first_diverging(gaps: Sequence[Gap]) -> Gap | None:
    """Find the first call whose inputs agree and whose output does not; None if there is none.

    gaps: in the order in which the calls ended, so that an inner module comes before its parents.
    """
    worst = max((gap.output_ratio for gap in gaps), default=0.0)
    # Start half-way (on a logarithmic scale) between noise and the worst, where a fault stands out.
    # Then lower the limit step by step, down to FACTOR, where noise may end.
    limit = min(sqrt(FACTOR * worst), SURE)
    while worst > FACTOR:
        for gap in gaps:
            # Inputs agree if they are nearer than the output by FACTOR, or as near as noise is.
            if gap.output_ratio > limit and gap.input_ratio <= max(FACTOR, limit / FACTOR):
                return gap
        if limit <= FACTOR:
            break
        limit = max(FACTOR, limit / FACTOR)
    return None


def gap_of(
    module: str,
    held: tuple[Arrays, Arrays],
    floors: tuple[list[float], list[float]],
    far: tuple[list[float], list[float]],
) -> Gap:
    """Make the gap of one call; each tuple is of inputs and outputs.

    Args:
        module: the module's path.
        held: the arrays of the right run.
        floors: their rounding noise, in their own unit.
        far: their distances in the other run.
    """
    ratios = [
        max(map(in_noise, distance, floor, arrays), default=0.0)
        for distance, floor, arrays in zip(far, floors, held, strict=True)
    ]
    inputs, outputs = (max(found, default=0.0) for found in far)
    return Gap(module, inputs, outputs, ratios[0], ratios[1])


def unmasked_distance(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the largest difference of elements that are not masked out; infinity for other shapes.

    For a masked element torch and a graph may have different large numbers, or one of them none.
    Its effect on the attention shows in the attention's output.
    """
    import numpy as np

    if expected.shape == actual.shape:
        masked = np.isfinite(actual) & (np.abs(actual) >= HIGHEST)
        masked |= np.abs(expected) >= HIGHEST
        actual = np.where(masked, expected, actual)
        if bool((np.isnan(expected) & np.isnan(actual)).all()):  # as the right run has it
            return 0.0
    return distances({"": expected}, {"": actual})[""].worst


def in_noise(far: float, floor: float, held: NDArray[Any]) -> float:
    """Return a distance in units of noise, cut at HIGHEST.

    The unit is the one of tolerance.OutputTolerance.allowed.
    """
    import numpy as np

    seen = np.where(np.abs(held) >= HIGHEST, 0, held)  # a mask would make the unit far too large
    unit = max(floor, 4 * EPS * largest({"": seen}, ""))
    if far == 0 or not isfinite(unit):
        return 0.0
    return min(far / unit if unit else HIGHEST, HIGHEST)
