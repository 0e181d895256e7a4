"""What storing in few bits left of the updates: measured by the proof, shown by every report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class KeptUpdate:
    """What is left of an update in stored weights, of one tensor or of all."""

    share: float
    """1 - |stored - exact|^2 / |update|^2: 1 for all of it, below 0 where rounding moves more."""
    moved: float
    """The share of the elements that differ from the base's, stored in the same dtype."""
    otherwise: Mapping[str, float] = field(default_factory=dict)
    """What `share` would be in a more precise dtype, by the dtype's name in a safetensors file.

    Of a large tensor it is measured on some rows.
    """


@dataclass(frozen=True, slots=True)
class UpdateSize:
    """How large the update of one tensor is beside its weight: two Frobenius norms."""

    update: float
    """Of the exact update, before any rounding; 0 for a module that was never trained."""
    weight: float
    """Of the base's tensor; of a large one, extrapolated from the rows that are measured."""


@dataclass(frozen=True, slots=True)
class Survival:
    """What storing left of all updates of a merge."""

    whole: KeptUpdate
    """Of all tensors together."""
    tensors: Mapping[str, KeptUpdate]
    """Of each merged tensor by name; a tensor whose update is zero is left out."""
    dtypes: tuple[str, ...]
    """In which the merged tensors are stored, by their names in a safetensors file."""
    sizes: Mapping[str, UpdateSize] = field(default_factory=dict)
    """Of each merged tensor by name, also where the update is zero."""
