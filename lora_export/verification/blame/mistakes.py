"""Says in words what a wrong merge looks like: the mistakes that people make most.

Nothing here decides whether a check passes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import TensorSpec
    from lora_export.verification.weights.tally import Tally

_ALIKE = 0.01
"""How far the parts of the update may lie from each other and still be one mistake."""

_OFTEN = 3.5
"""A factor above it is no adapter merged again, but another scaling or another adapter."""

_SHOWN = 3


def gain_told(merged: Sequence[Tally]) -> str:
    """What the parts of the update that arrived say together; "" when that is nothing.

    Every part is near 1 in a right merge, 2 in one that was merged twice, 0 where a module was
    left out.
    """
    parts = {one.name: 1 + one.gain for one in merged}
    missing = [name for name, part in parts.items() if abs(part) < _ALIKE]
    mean = sum(parts.values()) / len(parts)
    alike = all(abs(part - mean) <= _ALIKE * max(1.0, abs(mean)) for part in parts.values())
    if len(missing) == len(parts):
        return "no tensor holds the update: nothing was merged"
    if missing:
        return f"{len(missing)} of {len(parts)} targets were not merged: {_named(missing)}"
    if not alike or abs(mean - 1) <= _ALIKE:
        return ""
    if abs(mean - round(mean)) <= _ALIKE and 1 < mean < _OFTEN:
        return f"every target holds the update {round(mean)} times: merged more than once"
    return f"every target holds {mean:.4g} of the update: another alpha, rank, weight or adapter"


def names_told(wanted: Mapping[str, TensorSpec], written: Mapping[str, TensorSpec]) -> str:
    """How many tensors there are, which are missing or unplanned, and which dtypes are others."""
    both = [(wanted[name], written[name]) for name in wanted if name in written]
    dtypes = Counter((one.dtype, other.dtype) for one, other in both if one.dtype != other.dtype)
    shapes = [one.name for one, other in both if one.shape != other.shape]
    told = [f"{len(wanted)} tensors"]
    told += [
        f"{count} stored as {other}, where {one} is planned"
        for (one, other), count in dtypes.items()
    ]
    for what, names in (
        ("missing", [name for name in wanted if name not in written]),
        ("not planned", [name for name in written if name not in wanted]),
        ("of another shape", shapes),
    ):
        told += [f"{len(names)} {what}: {_named(names)}"] if names else []
    return "; ".join(told)


def _named(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
