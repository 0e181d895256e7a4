"""Where the rows of a weight come from while a model runs: a file, parts of files, or a change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import TYPE_CHECKING, Protocol

from lora_export.checkpoint.tensors import read_tensor, read_tensor_into, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor

    from lora_export.records import TensorRef

    #: (number of the first row, rows of a matrix) -> None: changes the rows in place. It may have a
    #: method `product(first, x, rows)`, which gives the product of x with the changed rows.
    Change = Callable[[int, Tensor], None]


class RowSource(Protocol):
    """The rows of one weight, along its first axis, as often as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Return a dtype that holds the stored values: the widest, where parts differ."""

    def fill(self, first: int, into: Tensor) -> None:
        """Fill `into` with the rows from `first` on, cast to its dtype.

        into: a dense tensor of shape (rows, *shape[1:]).

        Raises:
            InputError: a file ends early.
            StorageError: a file cannot be read.
        """

    def part(self, place: int) -> RowSource:
        """Return the rows of one entry of the first axis: of shape[1:]."""


@dataclass(frozen=True)
class ChangedRows:
    """Rows of another source, each block of which is changed after it is read."""

    origin: RowSource
    """Whose rows are changed; several readers may share one reading of it."""
    change: Change
    """Changes rows of the weight's matrix in place."""
    columns: int
    """Of that matrix, into which the weight is laid out row-major."""
    start: int = 0
    """The number of the first row in that matrix."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the source."""
        return self.origin.shape

    @property
    def dtype(self) -> torch.dtype:
        """Return the source's dtype; a change may need a wider one."""
        return self.origin.dtype

    def fill(self, first: int, into: Tensor) -> None:
        """See RowSource.fill."""
        self.origin.fill(first, into)
        self.apply(first, into)

    def apply(self, first: int, rows: Tensor) -> None:
        """Change rows of the source from `first` on, in place."""
        self.change(self.start + first * self._height, rows.view(-1, self.columns))

    def product(self, first: int, x: Tensor, rows: Tensor) -> Tensor | None:
        """Return the product of `x` with rows of the source after their change.

        rows: those of the source from `first` on; they stay as they are.

        Returns:
            (..., rows); None where the change itself is needed.
        """
        make = getattr(self.change, "product", None)
        matrix = rows.view(-1, self.columns)
        return make(self.start + first * self._height, x, matrix) if make else None

    def part(self, place: int) -> RowSource:
        """See RowSource.part."""
        start = self.start + place * self._height
        return replace(self, origin=self.origin.part(place), start=start)

    @property
    def _height(self) -> int:
        return prod(self.shape[1:]) // self.columns


@dataclass(frozen=True)
class FileRows:
    """The rows of a tensor that lies in a file."""

    ref: TensorRef
    """Where it lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the stored tensor's shape."""
        return self.ref.spec.shape

    @property
    def dtype(self) -> torch.dtype:
        """Return the stored tensor's dtype."""
        return torch_dtype(self.ref.spec.dtype)

    def fill(self, first: int, into: Tensor) -> None:
        """See RowSource.fill."""
        from lora_export.models.streaming.blocks import memory_of

        if not self.shape:
            into.copy_(read_tensor(self.ref))
            return
        if self.ref.strides is not None:  # strided rows lie anywhere
            into.copy_(read_tensor(self.ref)[first : first + len(into)])
            return
        ref = self.ref.part(first * prod(self.shape[1:]), tuple(into.shape))
        if into.dtype == self.dtype:
            read_tensor_into(ref, into)
            return
        stored = memory_of(self.dtype, tuple(into.shape), "stored")
        read_tensor_into(ref, stored)
        into.copy_(stored)

    def part(self, place: int) -> RowSource:
        """See RowSource.part."""
        if self.ref.strides is not None:
            stepped = self.ref.strides[0] * place * self.dtype.itemsize
            spec = replace(self.ref.spec, shape=self.shape[1:])
            offset, strides = self.ref.offset + stepped, self.ref.strides[1:]
            length = self.ref.length - stepped
            return FileRows(
                replace(self.ref, spec=spec, offset=offset, length=length, strides=strides)
            )
        return FileRows(self.ref.part(place * prod(self.shape[1:]), self.shape[1:]))


@dataclass(frozen=True)
class StackedRows:
    """A stack of weights of one shape: a layer's experts."""

    entries: tuple[RowSource, ...]
    """The entries of the first axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (entries, rows, columns)."""
        return (len(self.entries), *self.entries[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        """See RowSource.dtype."""
        return _widest(self.entries)

    def fill(self, first: int, into: Tensor) -> None:
        """See RowSource.fill."""
        for place, rows in enumerate(into, start=first):
            self.entries[place].fill(0, rows)

    def part(self, place: int) -> RowSource:
        """See RowSource.part."""
        return self.entries[place]


@dataclass(frozen=True)
class JoinedRows:
    """Weights below each other, which are one weight in the model."""

    parts: tuple[RowSource, ...]
    """The weights from the first row to the last."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all rows together."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """See RowSource.dtype."""
        return _widest(self.parts)

    def fill(self, first: int, into: Tensor) -> None:
        """See RowSource.fill."""
        at, stop = 0, first + len(into)
        for part in self.parts:
            low, high = max(first, at), min(stop, at + part.shape[0])
            if low < high:
                part.fill(low - at, into[low - first : high - first])
            at += part.shape[0]

    def part(self, place: int) -> RowSource:
        """See RowSource.part."""
        for part in self.parts:
            if place < part.shape[0]:
                return part.part(place)
            place -= part.shape[0]
        raise IndexError(place)


def _widest(sources: Sequence[RowSource]) -> torch.dtype:
    import torch

    return reduce(torch.promote_types, (source.dtype for source in sources))


def sources_in(rows: RowSource) -> set[RowSource]:
    """Return the sources that a weight comes of: itself, or those of its parts."""
    if isinstance(rows, StackedRows | JoinedRows):
        members = rows.entries if isinstance(rows, StackedRows) else rows.parts
        return set().union(*map(sources_in, members))
    return {rows}


def with_others(rows: RowSource, others: Mapping[RowSource, RowSource]) -> RowSource:
    """Return a weight with other sources in the place of some of those that it comes of."""
    if isinstance(rows, StackedRows):
        return StackedRows(tuple(with_others(entry, others) for entry in rows.entries))
    if isinstance(rows, JoinedRows):
        return JoinedRows(tuple(with_others(part, others) for part in rows.parts))
    return others.get(rows, rows)


def with_part(rows: RowSource, place: tuple[int, int], other: RowSource) -> RowSource | None:
    """Return a stack with another source for one part of one entry; None where it has none such.

    place: the numbers of the entry and of its part.
    """
    entry, part = place
    found = rows.entries[entry] if isinstance(rows, StackedRows) else None
    if not isinstance(found, JoinedRows) or found.parts[part].shape != other.shape:
        return None
    return with_others(rows, {found.parts[part]: other})


def bytes_of(source: RowSource) -> int:
    """Return the bytes of a weight as it is stored."""
    return elements_of(source) * source.dtype.itemsize


def elements_of(source: RowSource) -> int:
    """Return the number of elements of a weight."""
    return prod(source.shape)
