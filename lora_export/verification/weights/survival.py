"""Measures what storing left of the updates, in sums over elements that the proof looks at.

Half precision may round most of a small update away. The merge is right then: every element is the
nearest that the dtype has. Only these sums show it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import torch_dtype
from lora_export.records import KeptUpdate, Survival, UpdateSize
from lora_export.verification.weights.reductions import sum_of_squares

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_ENOUGH = 1 << 15
"""Elements of a tensor that are measured at least, if it has so many.

The share that is lost then differs from that of all rows by about a hundredth of itself.
"""

_LONGEST_STEP = 255
"""Of the largest tensors one row in so many is measured."""

_MORE_PRECISE = {"BF16": ("F16", "F32"), "F16": ("F32",)}
"""The dtypes that keep more of an update than this one."""


def row_step(elements: int) -> int:
    """Return n, where one row in n of a tensor of so many elements is measured.

    It is odd: the rows of attention are heads of an even size, and with an even step each row would
    have the same place in its head.
    """
    return min(elements // _ENOUGH, _LONGEST_STEP) | 1


@dataclass(slots=True)
class Stored:
    """Sums over the rows of a block or of a tensor."""

    elements: int = 0
    """How many elements there are."""
    update: float = 0.0
    """The sum of the squares of the exact update."""
    measured: int = 0
    """How many elements the following sums are of."""
    moved: int = 0
    """How many of them differ from the base's, stored in the same dtype."""
    part: float = 0.0
    """The sum of the squares of their exact update."""
    weight: float = 0.0
    """The sum of the squares of the same elements of the base."""
    lost: dict[str, float] = field(default_factory=dict)
    """The sum of the squares of stored - exact, by dtype: the tensor's own, more precise ones."""

    def add(self, other: Stored) -> None:
        """Add the sums of further rows."""
        self.elements += other.elements
        self.update += other.update
        self.measured += other.measured
        self.moved += other.moved
        self.part += other.part
        self.weight += other.weight
        for dtype, lost in other.lost.items():
            self.lost[dtype] = self.lost.get(dtype, 0.0) + lost

    def kept(self, dtype: str) -> KeptUpdate | None:
        """Return the shares; None where the update is zero, or where a sum is not finite.

        dtype: that of the tensor.
        """
        if not self.part or not isfinite(self.lost[dtype] / self.part):
            return None
        shares = {name: 1 - lost / self.part for name, lost in self.lost.items() if isfinite(lost)}
        return KeptUpdate(shares.pop(dtype), self.moved / self.measured, shares)

    def size(self) -> UpdateSize:
        """Return the norms of the whole update and, from the measured elements, of the base."""
        return UpdateSize(sqrt(self.update), sqrt(self.weight * self.elements / self.measured))

    def lost_in(self, dtype: str, own: str) -> float:
        """Return what the whole tensor loses in `dtype`; infinity where that is not known.

        own: the tensor's dtype. Where that is as precise, nothing is gained.
        """
        return self.lost.get(dtype if dtype in self.lost else own, inf) / self.part * self.update


def measure(
    base: torch.Tensor, written: torch.Tensor, exact: torch.Tensor, update: torch.Tensor, dtype: str
) -> Stored:
    """Return the sums over all elements of some rows.

    Args:
        base: the rows of the base, in the dtype of `written`.
        written: the same rows as they are stored.
        exact: base + update in float64.
        update: in float64.
        dtype: that of `written`, by its name in the file.
    """
    import torch

    others = {name: exact.to(torch_dtype(name)) for name in _MORE_PRECISE.get(dtype, ())}
    size = sum_of_squares(update)
    return Stored(
        elements=written.numel(),
        update=size,
        measured=written.numel(),
        moved=int(torch.count_nonzero(base != written)),
        part=size,
        weight=sum_of_squares(base.double()),
        lost={
            name: sum_of_squares(torch.sub(exact, stored.double()))
            for name, stored in {dtype: written, **others}.items()
        },
    )


def survival_of(stored: Mapping[str, Stored], dtypes: Mapping[str, str]) -> Survival | None:
    """Return what is left of all updates; None where no update is known.

    Args:
        stored: the sums of every merged tensor, by name.
        dtypes: the dtypes of the same tensors.
    """
    found = {name: sums.kept(dtypes[name]) for name, sums in stored.items() if sums.measured}
    tensors = {name: kept for name, kept in found.items() if kept}
    known = {name: stored[name] for name in tensors}
    update = sum(sums.update for sums in known.values())
    if not known or not isfinite(update):
        return None
    elements = sum(sums.elements for sums in known.values())
    moved = sum(kept.moved * known[name].elements for name, kept in tensors.items())
    used = {dtypes[name] for name in known}
    lost = {
        other: sum(sums.lost_in(other, dtypes[name]) for name, sums in known.items())
        for other in ("", *dict.fromkeys(o for own in used for o in _MORE_PRECISE.get(own, ())))
    }
    shares = {dtype: 1 - size / update for dtype, size in lost.items() if isfinite(size)}
    sizes = {name: sums.size() for name, sums in stored.items() if sums.measured}
    whole = KeptUpdate(shares.pop(""), moved / elements, shares)
    return Survival(whole, tensors, tuple(sorted(used)), sizes)
