"""Weights on their way between a checkpoint and a file, block by block.

A model's weights may lie in mapped files, and one of them may take gigabytes in float32. A block is
the most that is read, cast and turned at once, so that the memory taken does not grow with either.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    Weight: TypeAlias = "Tensor | NDArray[Any] | Cast | Made"

BLOCK = 4 << 20
"""Elements of a block."""


@dataclass(frozen=True, slots=True)
class Cast:
    """A weight that is stored in one floating dtype, and stands in the graph in another."""

    tensor: Tensor
    """As it is stored; its memory may be a mapped file."""
    dtype: np.dtype[Any]
    """In the graph: float32 or float16. Each element is rounded once, to nearest, ties to even."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weight."""
        return tuple(self.tensor.shape)

    def block(self, part: Tensor) -> NDArray[Any]:
        """Return a part of the tensor in the graph's dtype."""
        import torch

        wide: torch.dtype = getattr(torch, self.dtype.name)
        return as_array(part.to(wide))


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that is computed block by block, each time it is asked for."""

    shape: tuple[int, ...]
    """Of the tensor."""
    dtype: np.dtype[Any]
    """Of the tensor."""
    make: Callable[[], Iterator[NDArray[Any]]]
    """Yields its blocks in row-major order, of this dtype."""


def as_array(weight: Tensor | NDArray[Any] | Cast) -> NDArray[Any]:
    """Return a dense array of the same bits; bfloat16 becomes ml_dtypes' bfloat16."""
    import numpy as np

    if isinstance(weight, Cast):
        return weight.block(weight.tensor)
    if isinstance(weight, np.ndarray):
        return np.asarray(weight, order="C")
    import torch

    dense = weight.detach().cpu().contiguous()
    if dense.dtype is not torch.bfloat16:
        return np.asarray(dense.numpy())
    import ml_dtypes

    return np.asarray(dense.view(torch.int16).numpy().view(ml_dtypes.bfloat16))


def dtype_of(weight: Weight) -> np.dtype[Any]:
    """Return the dtype that `as_array` gives, without reading the values."""
    import numpy as np

    if isinstance(weight, (np.ndarray, Cast, Made)):
        return weight.dtype
    return as_array(weight.new_empty(0)).dtype


def blocks(weight: Weight, perm: tuple[int, ...] = ()) -> Iterator[NDArray[Any]]:
    """Yield a weight with permuted axes as dense blocks, in row-major order.

    perm: of axes, as numpy's `transpose` takes it; empty for the identity, and for what is made.
    """
    if isinstance(weight, Made):
        yield from weight.make()
        return
    tensor = weight.tensor if isinstance(weight, Cast) else weight
    for part in parts(turn(tensor, perm)):
        yield weight.block(part) if isinstance(weight, Cast) else as_array(part)


def parts(tensor: Any) -> Iterator[Any]:
    """Yield views of a torch tensor or an array, of at most BLOCK elements, in row-major order."""
    count = prod(tensor.shape)
    if count <= BLOCK:
        yield tensor
        return
    row = count // len(tensor)
    if row > BLOCK:
        for inner in tensor:
            yield from parts(inner)
        return
    rows = BLOCK // row
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows]


def turn(tensor: Any, perm: tuple[int, ...]) -> Any:
    """Return a view of a torch tensor or an array with permuted axes."""
    import numpy as np

    if not perm:
        return tensor
    return tensor.transpose(perm) if isinstance(tensor, np.ndarray) else tensor.permute(perm)


def same_memory(left: Weight, right: Weight) -> bool:
    """Return whether two weights are one tensor under two names."""
    return left is right or _address(left) == _address(right)


def _address(weight: Weight) -> int:
    import numpy as np

    if isinstance(weight, Made):
        return id(weight)
    if isinstance(weight, Cast):
        return weight.tensor.data_ptr()
    return int(weight.ctypes.data) if isinstance(weight, np.ndarray) else weight.data_ptr()


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight as a matrix of the graph, of which blocks are read in float32."""

    weight: Tensor | NDArray[Any] | Cast
    """A floating weight of two axes."""
    turned: bool = False
    """Whether the matrix is the weight's transpose."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns of the matrix."""
        rows, columns = self.weight.shape
        return (columns, rows) if self.turned else (rows, columns)

    @property
    def T(self) -> Matrix:  # noqa: N802 - NumPy's and torch's name
        """Return the transposed matrix."""
        return Matrix(self.weight, not self.turned)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read rows in float32, dense."""
        return self._float32(self._view[start:stop])

    def columns(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read columns in float32, dense: of shape (rows, stop - start)."""
        return self._float32(self._view[:, start:stop])

    @property
    def _view(self) -> Any:
        inner = self.weight.tensor if isinstance(self.weight, Cast) else self.weight
        return turn(inner, (1, 0) if self.turned else ())

    @staticmethod
    def _float32(part: Any) -> NDArray[np.float32]:
        import numpy as np

        return as_array(part).astype(np.float32, copy=False)


def spans(count: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of rows of `width` elements, to cover `count` rows in order."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, count, step):
        yield start, min(start + step, count)
