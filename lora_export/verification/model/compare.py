"""Measures how far two sets of model outputs are apart, and where: pure arithmetic on arrays.

A difference in structure is an infinite distance. An exception could skip a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    #: The outputs of one run, by name.
    Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Distance:
    """The largest absolute difference and its place."""

    worst: float
    """In the output's own unit.

    It is infinite for a NaN or an infinity that only one side has, for an output that is NaN
    throughout, and for a difference in structure.
    """
    output: str = ""
    """The name of the output."""
    index: tuple[int, ...] = ()
    """The place of the element in the output."""
    detail: str = ""
    """Why the distance is infinite; "" if it is finite."""

    def __str__(self) -> str:
        return self.output + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


def distances(expected: Outputs, actual: Outputs) -> dict[str, Distance]:
    """Return the distance of every output, by name.

    The distance is infinite for an output that one side lacks, or has in another shape or kind of
    dtype.
    """
    names = dict.fromkeys([*expected, *actual])
    return {name: _one(name, expected.get(name), actual.get(name)) for name in names}


def distance(expected: Outputs, actual: Outputs) -> Distance:
    """Return the largest of all outputs' distances; zero for two empty sets."""
    return worst_of(list(distances(expected, actual).values()))


def worst_of(found: Sequence[Distance]) -> Distance:
    """Return the largest of several distances, the first of equal ones; zero for none."""
    return max(found, key=lambda one: one.worst, default=Distance(0.0))


def gaps(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Return the absolute differences of arrays of one shape, in float64.

    A difference is infinite for a NaN and for an infinity that only one side has.
    """
    return _gap(_widened(left), _widened(right))


def finite_distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the largest difference of elements that are finite on both sides; 0 for none."""
    import numpy as np

    gap = gaps(left, right)
    return float(np.max(gap, where=np.isfinite(gap), initial=0.0))


def nan_counts(
    expected: Sequence[Outputs], actual: Sequence[Outputs]
) -> dict[str, tuple[int, int]]:
    """Count the elements that are NaN on both sides, over runs of the same probes.

    Returns:
        (their number, that of all elements) by output, where there are any.
    """
    import numpy as np

    counts: dict[str, tuple[int, int]] = {}
    for left, right in zip(expected, actual, strict=True):
        for name, values in left.items():
            other = right.get(name)
            if values.dtype.kind in "fc" and other is not None and other.shape == values.shape:
                found, elements = counts.get(name, (0, 0))
                both = int(np.count_nonzero(np.isnan(values) & np.isnan(other)))
                counts[name] = found + both, elements + values.size
    return {name: count for name, count in counts.items() if count[0]}


def has_nan(outputs: Outputs) -> bool:
    """Return whether an element of an output is NaN."""
    import numpy as np

    return any(np.isnan(v).any() for v in outputs.values() if v.dtype.kind in "fc")


def same_nan(one: Sequence[Outputs], other: Sequence[Outputs]) -> bool:
    """Return whether two runs of the same probes have NaN at the same places."""
    import numpy as np

    return all(
        np.array_equal(np.isnan(left[name]), np.isnan(right[name]))
        for left, right in zip(one, other, strict=True)
        for name in left
        if left[name].dtype.kind in "fc"
    )


def largest(outputs: Outputs, name: str) -> float:
    """Return the largest finite absolute value of an output; 0 for none."""
    import numpy as np

    values = np.abs(_widened(outputs[name]))
    return float(np.max(values, where=np.isfinite(values), initial=0.0))


def ratio(part: float, whole: float) -> float:
    """Return `part / whole`; without a whole, 0 for no part and infinity for any other."""
    return part / whole if whole else inf if part else 0.0


def shifted(
    values: NDArray[Any], before: NDArray[Any] | None, after: NDArray[Any] | None
) -> NDArray[Any]:
    """Return an output plus `after` - `before`, where that is finite.

    An output of whole numbers is the one of `after`. One of another shape is returned as it is.
    """
    import numpy as np

    if before is None or after is None or not values.shape == before.shape == after.shape:
        return values
    if values.dtype.kind not in "fc":
        return after
    with np.errstate(invalid="ignore"):
        moved = after - before
    shifted: NDArray[Any] = np.where(np.isfinite(moved), values + moved, values)
    return shifted


def join_batches(parts: Sequence[Outputs], like: Outputs) -> dict[str, NDArray[Any]]:
    """Join the outputs of single samples along their first axis.

    An output is left out if its shape then differs from that in `like`: its first axis does not
    count samples.
    """
    import numpy as np

    joined = {
        name: np.concatenate([part[name] for part in parts])
        for name in like
        if like[name].ndim and all(part[name].ndim == like[name].ndim for part in parts)
    }
    return {name: array for name, array in joined.items() if array.shape == like[name].shape}


def _one(name: str, expected: NDArray[Any] | None, actual: NDArray[Any] | None) -> Distance:
    mismatch = _mismatch(expected, actual)
    if mismatch or expected is None or actual is None:
        return Distance(inf, name, detail=mismatch)
    return _largest_difference(name, expected, actual)


def _mismatch(expected: NDArray[Any] | None, actual: NDArray[Any] | None) -> str:
    if expected is None:
        return "the reference has no such output"
    if actual is None:
        return "output is missing"
    if expected.dtype.kind != actual.dtype.kind:
        return f"dtype {actual.dtype} where {expected.dtype} is expected"
    if expected.shape != actual.shape:
        return f"shape {actual.shape} where {expected.shape} is expected"
    return ""


def _largest_difference(name: str, expected: NDArray[Any], actual: NDArray[Any]) -> Distance:
    import numpy as np

    if expected.size == 0:
        return Distance(0.0, name)
    left, right = _widened(expected), _widened(actual)
    if np.isnan(left).all() and np.isnan(right).all():  # no number is left that could differ
        return Distance(inf, name, detail="the models give nothing but NaN")
    gap = _gap(left, right)
    flat = int(np.argmax(gap))
    index = tuple(int(place) for place in np.unravel_index(flat, gap.shape))
    worst = float(gap.flat[flat])
    detail = _infinity(left.flat[flat], right.flat[flat]) if worst == inf else ""
    return Distance(worst, name, index, detail)


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _gap(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Return absolute differences: 0 for equal infinities and for two NaN, infinity for one NaN.

    A row that a mask hides throughout has a softmax of 0 / 0: there NaN is the right result.
    """
    import numpy as np

    finite = np.isfinite(left) & np.isfinite(right)
    gap = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0.0, inf)
    gap[finite] = np.abs(left[finite] - right[finite])
    return gap


def _infinity(expected: complex, actual: complex) -> str:
    """Return why a distance is infinite."""
    if expected != expected:  # noqa: PLR0124 - only NaN is unequal to itself
        return f"{actual} where the reference model gives NaN"
    return f"{actual} where {expected} is expected"
