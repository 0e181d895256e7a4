"""Describes a wrong merge in words, by the mistakes that are made most often.

Nothing here decides whether a check passes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import TensorSpec
    from lora_export.verification.weights.tally import Tally

_ALIKE = 0.01
"""How far the parts of the update may lie from each other and still be one mistake."""

_OFTEN = 3.5
"""The largest factor that counts as a repeated merge.

A larger one is rather another scaling or another adapter."""


def describe_gain(merged: Sequence[Tally]) -> str:
    """Describe the mistake that explains how much of the update each tensor has; "" if none does.

    The part of the update in a tensor is near 1 in a right merge. It is near 2 after two merges,
    and 0 in a module that was left out.
    """
    parts = {one.name: 1 + one.gain for one in merged}
    missing = [name for name, part in parts.items() if abs(part) < _ALIKE]
    mean = sum(parts.values()) / len(parts)
    alike = all(abs(part - mean) <= _ALIKE * max(1.0, abs(mean)) for part in parts.values())
    if len(missing) == len(parts):
        return "no tensor holds the update: nothing was merged"
    if missing:
        return f"{len(missing)} of {len(parts)} targets were not merged: {first_names(missing)}"
    if not alike or abs(mean - 1) <= _ALIKE:
        return ""
    if abs(mean - round(mean)) <= _ALIKE and 1 < mean < _OFTEN:
        return f"every target holds the update {round(mean)} times: merged more than once"
    return f"every target holds {mean:.4g} of the update: another alpha, rank, weight or adapter"


def describe_names(wanted: Mapping[str, TensorSpec], written: Mapping[str, TensorSpec]) -> str:
    """Describe which planned tensors are missing, and which have another dtype or shape.

    Tensors that are not planned are named as well.
    """
    both = [(wanted[name], written[name]) for name in wanted if name in written]
    dtypes = Counter((one.dtype, other.dtype) for one, other in both if one.dtype != other.dtype)
    shapes = [one.name for one, other in both if one.shape != other.shape]
    parts = [
        f"{count} stored as {other}, where {one} is planned"
        for (one, other), count in dtypes.items()
    ]
    for what, names in (
        ("missing", [name for name in wanted if name not in written]),
        ("not planned", [name for name in written if name not in wanted]),
        ("of another shape", shapes),
    ):
        parts += [f"{len(names)} {what}: {first_names(names)}"] if names else []
    return f"{counted(len(wanted), 'planned tensor')}: {'; '.join(parts)}"
