"""Blocks of rows: how a weight is divided, the memory they take, and the output they make."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

ELEMENTS = 1 << 20
"""Elements of a block. Its memory, in the dtype of the run, stays in a processor's cache."""

LEAST_ROWS = 64
"""The fewest rows of a block: a product of fewer may have other last bits than the whole one's."""

_KEPT = threading.local()
"""Of each thread, the memory that is used again."""


def bounds(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Divide the rows of a weight into blocks (first, stop); a block of a stack is one entry."""
    rows, width = shape[0], max(1, torch.Size(shape[1:]).numel())
    size = max(ELEMENTS // width, LEAST_ROWS if len(shape) < 3 else 1)
    count = max(1, rows // size)
    starts = [size * place for place in range(count)]
    return list(zip(starts, [*starts[1:], rows], strict=True))


def memory_of(dtype: torch.dtype, shape: tuple[int, ...], use: str) -> Tensor:
    """Return uninitialised memory of a shape, which the thread's next call of it uses again.

    Fresh memory for each block would cost more time than the reading: its pages are zeroed first.

    use: memory for another use is other memory.
    """
    kept: dict[tuple[str, torch.dtype], Tensor] = _KEPT.__dict__.setdefault("by_use", {})
    size = torch.Size(shape).numel()
    if (use, dtype) not in kept or kept[use, dtype].numel() < size:
        kept[use, dtype] = torch.empty(size, dtype=dtype)
    return kept[use, dtype][:size].view(shape)


class Features:
    """The output of a layer, of which each block of the weight gives some features."""

    def __init__(self, count: int) -> None:
        """Take the number of features in all."""
        self._count = count
        #: (..., count), once all features are there.
        self.output: Tensor | None = None
        self._made: Tensor | None = None

    def take(self, first: int, part: Tensor) -> None:
        """Add features from `first` on, (..., some); they come in their order."""
        stop = first + part.shape[-1]
        if part.shape[-1] == self._count:
            self.output = part
            return
        if self._made is None:
            self._made = part.new_empty((*part.shape[:-1], self._count))
        self._made[..., first:stop] = part
        if stop == self._count:
            self.output = self._made
