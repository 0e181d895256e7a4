"""How far two sets of model outputs are apart, and where: pure arithmetic on arrays.

A difference in structure is a distance too (an infinite one), so that no comparison can be skipped
by an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Distance:
    """The largest absolute difference and its place.

    worst: in the outputs' own unit; infinite for any NaN, for an infinity that only one side has,
    and for a difference in structure. output and index: where; detail: why it is infinite.
    """

    worst: float
    output: str = ""
    index: tuple[int, ...] = ()
    detail: str = ""

    def __str__(self) -> str:
        return self.output + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


def distances(expected: Outputs, actual: Outputs) -> dict[str, Distance]:
    """Distance of every output, by name; an output that one side lacks is infinitely far."""
    names = dict.fromkeys([*expected, *actual])
    return {name: _one(name, expected.get(name), actual.get(name)) for name in names}


def distance(expected: Outputs, actual: Outputs) -> Distance:
    """The worst of all outputs' distances; zero for two empty sets."""
    return worst_of(list(distances(expected, actual).values()))


def worst_of(found: Sequence[Distance]) -> Distance:
    """The largest of several distances, the first of equals; zero for none."""
    return max(found, key=lambda one: one.worst, default=Distance(0.0))


def gaps(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Absolute differences of arrays of one shape; infinite for a NaN and a lone infinity."""
    return _gap(_widened(left), _widened(right))


def finite_distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The largest difference where both are finite; 0 where there is none."""
    import numpy as np

    gap = gaps(left, right)
    return float(np.max(gap, where=np.isfinite(gap), initial=0.0))


def largest(outputs: Outputs, name: str) -> float:
    """Largest finite absolute value of an output; 0 where there is none."""
    import numpy as np

    values = np.abs(_widened(outputs[name]))
    return float(np.max(values, where=np.isfinite(values), initial=0.0))


def join_batches(parts: Sequence[Outputs], like: Outputs) -> dict[str, NDArray[Any]]:
    """Outputs of single samples put together again along their first axis.

    Only outputs whose shape then equals that of `like` are returned: others do not count samples.
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
        return "output was not expected"
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
    """Absolute differences; equal infinities are no distance apart, a NaN is from everything."""
    import numpy as np

    finite = np.isfinite(left) & np.isfinite(right)
    gap = np.where(left == right, 0.0, inf)
    gap[finite] = np.abs(left[finite] - right[finite])
    return gap


def _infinity(expected: complex, actual: complex) -> str:
    """Why a distance is infinite; NaN is the only number that is not itself."""
    if expected != expected:  # noqa: PLR0124
        return "the model that is right by definition gives NaN, so nothing can be proven"
    return f"{actual} where {expected} is expected"
