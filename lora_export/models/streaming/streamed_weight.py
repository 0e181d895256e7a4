"""A weight of a running model that is no memory, but rows of a file.

A product reads it block by block, and an embedding reads the rows it looks up. A stack of experts
reads those that are routed to. Any other operation reads it whole and lets it go.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map_only

from lora_export.models.streaming.blocks import Features, bounds, memory_of
from lora_export.models.streaming.row_sources import ChangedRows, RowSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

WHOLE_ELEMENTS = 1 << 25
"""Elements of a weight stored (in, out) that is read whole when its layer runs (128 MB)."""

_THREAD = threading.local()
"""Of each thread, what makes its products; see `products`."""

_WHOLE = threading.RLock()
"""Is entered while a weight is read whole, so that one thread at a time has one in memory."""

_aten = torch.ops.aten


class StreamedWeight(torch.Tensor):
    """A tensor without storage whose elements come from a RowSource; it cannot be changed."""

    #: Where the rows come from.
    rows: RowSource
    #: The number of the weight in the order of the model's weights; see lockstep.
    place: int

    @staticmethod
    def __new__(  # noqa: PYI034 - torch's maker returns what its own stubs call a Tensor
        cls: type[StreamedWeight],
        rows: RowSource,
        dtype: torch.dtype,
        place: int = 0,
        strides: Sequence[int] | None = None,
    ) -> StreamedWeight:
        """Make a weight of the source's shape, whose elements are cast to `dtype`.

        strides: of the tensor that is made where the weight is read whole; None for row-major.
        """
        made: Any = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 - the documented way
            cls, rows.shape, strides=strides, dtype=dtype
        )
        made.rows, made.place = rows, place
        made._is_param = True  # noqa: SLF001 - isinstance(..., nn.Parameter) asks for it
        return made  # type: ignore[no-any-return]

    def __init__(self, *_: object, **__: object) -> None:
        """See __new__; a tensor's own constructor takes no arguments."""

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        """Return shape and dtype; the values are in a file."""
        return f"StreamedWeight({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamedWeight:
        """Return a weight of the same rows: a model that is cast changes its weights' dtype."""
        return self.like()

    def like(
        self, rows: RowSource | None = None, dtype: torch.dtype | None = None
    ) -> StreamedWeight:
        """Return a weight with other rows, or in another dtype."""
        rows, dtype = rows or self.rows, dtype or self.dtype
        strides = self.stride() if rows.shape == tuple(self.shape) else None
        return StreamedWeight(rows, dtype, self.place, strides)

    def read(self, first: int = 0, stop: int | None = None) -> Tensor:
        """Read rows into memory of their own, by default all of them."""
        stop = len(self) if stop is None else stop
        made = torch.empty((stop - first, *self.shape[1:]), dtype=self.dtype)
        self.rows.fill(first, made)
        if self.is_contiguous():
            return made
        # Products of a turned tensor have other last bits than those of a row-major one.
        turned = torch.empty_strided(made.shape, self.stride(), dtype=self.dtype)
        return turned.copy_(made)

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (first row, stop, rows); the next block overwrites the one before."""
        for first, stop in bounds(tuple(self.shape)):
            block = memory_of(self.dtype, (stop - first, *self.shape[1:]), "block")
            self.rows.fill(first, block)
            yield first, stop, block

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the functions that have a way of their own; pass all others on to the dispatcher."""
        own = _FUNCTIONS.get(func)
        if own is not None:
            found = own(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        # Tensor's own __torch_function__ would make every result a StreamedWeight.
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch documents it
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator lazily where it has such a way, else on weights that are read whole.

        Raises:
            RuntimeError: the operator would change the weight.
        """
        own = _OPERATORS.get(func)
        if own is not None:
            found = own(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        _refuse_change(func, args)
        with _WHOLE:
            read = tree_map_only(StreamedWeight, lambda weight: weight.read(), (args, kwargs or {}))
            return func(*read[0], **read[1])


@contextmanager
def products(make: Callable[[Tensor, StreamedWeight, Tensor | None], Tensor]) -> Iterator[None]:
    """Let `make(x, weight, bias)` run nn.functional.linear in this thread, while it is entered."""
    _THREAD.make = make
    try:
        yield
    finally:
        del _THREAD.make


def _refuse_change(func: Any, args: Sequence[Any]) -> None:
    for argument, given in zip(func._schema.arguments, args, strict=False):  # noqa: SLF001 - the only way to ask
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and tree_any(lambda leaf: isinstance(leaf, StreamedWeight), given):
            message = f"{func} would change a weight that is read from its file"
            raise RuntimeError(message)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Run nn.functional.linear block by block: each block gives some features of the output."""
    if not isinstance(weight, StreamedWeight) or isinstance(x, StreamedWeight):
        return NotImplemented
    make = getattr(_THREAD, "make", None)
    # A mode that changes how products are made holds in its own thread alone.
    if make is not None and not torch._C._len_torch_dispatch_stack():  # noqa: SLF001 - the only way to ask
        return make(x, weight, bias)
    features = Features(len(weight))
    for first, stop, block in weight.blocks():
        features.take(first, F.linear(x, block, None if bias is None else bias[first:stop]))
    return features.output


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, **scales: Any) -> Any:
    """Run torch.addmm, as Conv1D does, whose weight is stored (in, out).

    Blocks of rows are parts of every sum, so the last bits depend on them. Only a weight that is
    too large to be read whole is multiplied that way.
    """
    if not isinstance(weight, StreamedWeight) or isinstance(x, StreamedWeight):
        return NotImplemented
    if scales or isinstance(bias, StreamedWeight) or weight.numel() <= WHOLE_ELEMENTS:
        return NotImplemented
    made = bias
    for first, stop, block in weight.blocks():
        made = torch.addmm(made, x[:, first:stop], block)
    return made


def _embedding(
    ids: Tensor,
    weight: Tensor,
    *,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    **_: object,
) -> Any:
    """Look rows up; each is read once. The other options matter to gradients alone."""
    if not isinstance(weight, StreamedWeight):
        return NotImplemented
    wanted, places = torch.unique(ids, return_inverse=True)
    few = _rows(weight, wanted.tolist())
    return F.embedding(places, few, max_norm=max_norm, norm_type=norm_type)


def _set_item(weight: Tensor, place: Any, _: Any) -> Any:
    """Refuse a write through a view: the view of a streamed weight is a copy."""
    if not isinstance(weight, StreamedWeight):
        return NotImplemented
    message = f"{place} would change a weight that is read from its file"
    raise RuntimeError(message)


def _rows(weight: StreamedWeight, numbers: Sequence[int]) -> Tensor:
    """Read rows of these numbers, in their order.

    Raises:
        IndexError: there is no such row.
    """
    made = torch.empty((len(numbers), *weight.shape[1:]), dtype=weight.dtype)
    for place, number in enumerate(numbers):
        if not 0 <= number < len(weight):
            message = f"index {number} is out of range of {len(weight)} rows"
            raise IndexError(message)
        weight.rows.fill(number, made[place : place + 1])
    return made


def _select(weight: Any, axis: int, place: int) -> Any:
    if axis % weight.dim() or weight.dim() < 3:
        return NotImplemented
    return weight.like(weight.rows.part(place % len(weight)))


def _slice(weight: Any, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    if axis % weight.dim() or step != 1:
        return NotImplemented
    first, last, _ = slice(start, stop).indices(len(weight))
    whole = (first, last) == (0, len(weight))
    return weight.like() if whole else weight.read(first, max(first, last))


def _index(weight: Any, indices: Sequence[Any]) -> Any:
    [first, *more] = indices
    is_list = isinstance(first, Tensor) and first.dtype in (torch.int64, torch.int32)
    if not isinstance(weight, StreamedWeight) or more or not is_list:
        return NotImplemented
    size = len(weight)
    numbers = [int(n) + (size if n < 0 else 0) for n in first.reshape(-1)]
    return _rows(weight, numbers).view(*first.shape, *weight.shape[1:])


def _cast(weight: Any, dtype: torch.dtype | None = None, **_: object) -> Any:
    """Cast as the weight is read, unless its own dtype has rounded the stored values first."""
    is_rounded = torch.promote_types(weight.rows.dtype, weight.dtype) != weight.dtype
    return NotImplemented if is_rounded else weight.like(dtype=dtype)


def _baddbmm(stack: Any, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """Add a product to each entry of a stack as it is read: the experts of a live branch."""
    if not isinstance(stack, StreamedWeight) or beta != 1:
        return NotImplemented
    height, columns = stack.shape[1:]

    def change(first: int, rows: Tensor) -> None:
        done = 0
        while done < len(rows):
            entry, row = divmod(first + done, height)
            count = min(height - row, len(rows) - done)
            part = left[entry, row : row + count].to(rows.dtype)
            rows[done : done + count].addmm_(part, right[entry].to(rows.dtype), alpha=alpha)
            done += count

    return stack.like(ChangedRows(stack.rows, change, columns))


def _same(weight: Any, *_: object, **__: object) -> Any:
    return weight.like()


def _view(weight: Any, shape: Sequence[int]) -> Any:
    return weight.like() if tuple(shape) == tuple(weight.shape) else NotImplemented


def _bmm(left: Tensor, right: Tensor) -> Any:
    """Multiply by a stack, one entry at a time."""
    if not isinstance(right, StreamedWeight) or isinstance(left, StreamedWeight):
        return NotImplemented
    return torch.cat([left[e : e + 1] @ right.read(e, e + 1) for e in range(len(right))])


_FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.addmm: _addmm,
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.data.__get__: _same,  # type: ignore[attr-defined]
}
"""torch's functions that have a way of their own; each returns NotImplemented for other uses."""

_OPERATORS: Mapping[Any, Callable[..., Any]] = {
    _aten.select.int: _select,
    _aten.slice.Tensor: _slice,
    _aten.index.Tensor: _index,
    _aten._to_copy.default: _cast,  # noqa: SLF001 - its name in the dispatcher
    _aten.detach.default: _same,
    _aten.clone.default: _same,
    _aten.alias.default: _same,
    _aten.view.default: _view,
    _aten.bmm.default: _bmm,
    _aten.baddbmm.default: _baddbmm,
}
"""Operators of the dispatcher that need not read the whole weight."""
