"""Rows of a weight in a few bits, in the arithmetic and layout of ONNX Runtime's kernels.

ONNX Runtime's own tools for this are not used; docs/decisions/0015-precision.md gives the reason.
They are the oracle of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.onnx_export.file.weight_blocks import spans
from lora_export.onnx_export.precision.grids import NEGLIGIBLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lora_export.onnx_export.file.weight_blocks import Matrix
    from lora_export.onnx_export.precision.grids import Grid

    Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight of R rows and C columns, rounded."""

    codes: Array
    """uint8 or int8 [R, blocks, block], padded with zeros behind the row's end."""
    scales: Array
    """float32 [R, blocks]."""
    zeros: Array | None
    """The zero points, uint8 [R, blocks]; None on a symmetric grid."""


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """A matrix of R rows and C columns on a grid, computed block by block.

    A value is `(code - zero point) * scale`, and off by at most half a step. Scales are float32, as
    the kernels take them.
    """

    rows: Matrix
    """The float32 rows [R, C]."""
    grid: Grid
    """Its blocks, and how each is rounded."""

    @property
    def block(self) -> int:
        """Return the elements of a row that share a scale."""
        return self.grid.block or self.rows.shape[1]

    @property
    def blocks(self) -> int:
        """Return the number of scales of a row."""
        return -(-self.rows.shape[1] // self.block)

    def parts(self) -> Iterator[Rounded]:
        """Yield the rounded rows from the first to the last."""
        for start, stop in spans(*self.rows.shape):
            yield quantize_rows(self.rows.rows(start, stop), self.grid)

    def columns(self) -> Iterator[Array]:
        """Yield the codes [C, R] of a grid of whole rows, from the first column to the last."""
        scales, zeros = self.steps()
        for start, stop in spans(*self.rows.shape[::-1]):
            values = self.rows.columns(start, stop)[:, None, :]
            yield _codes(values, self.grid, scales, zeros)[:, 0].T

    def steps(self) -> tuple[Array, Array | None]:
        """Return the scales and zero points of all rows, as in `Rounded`."""
        import numpy as np

        scales, zeros = [], []
        for start, stop in spans(*self.rows.shape):
            one, zero = _steps(_in_blocks(self.rows.rows(start, stop), self.block), self.grid)
            scales.append(one)
            zeros += [] if zero is None else [zero]
        return np.concatenate(scales), np.concatenate(zeros) if zeros else None


def quantize_rows(rows: Array, grid: Grid) -> Rounded:
    """Round float32 rows [R, C], which are in memory, to the grid; see `RoundedRows`."""
    number, width = rows.shape
    values = _in_blocks(rows, grid.block or width)
    scales, zeros = _steps(values, grid)
    codes = _codes(values, grid, scales, zeros)
    # On an affine grid the padding has the code of zero, and the kernels' tools write zeros.
    codes.reshape(number, -1)[:, width:] = 0
    return Rounded(codes, scales, zeros)


def _in_blocks(rows: Array, block: int) -> Array:
    """Return rows [R, C] as blocks [R, blocks, block], padded with zeros behind a row's end."""
    import numpy as np

    number, width = rows.shape
    blocks = -(-width // block)
    if width == blocks * block:
        return rows.reshape(number, blocks, block)
    padded = np.zeros((number, blocks * block), np.float32)
    padded[:, :width] = rows
    return padded.reshape(number, blocks, block)


def _steps(values: Array, grid: Grid) -> tuple[Array, Array | None]:
    """Return scales, and zero points unless the grid is symmetric, of blocks [..., block].

    The range of a block always includes zero, so that a zero stays zero.
    """
    import numpy as np

    levels = np.float32(grid.levels)
    if grid.symmetric:
        return _drop_negligible(np.abs(values).max(axis=-1) / levels), None
    low, high = np.minimum(values.min(axis=-1), 0), np.maximum(values.max(axis=-1), 0)
    scales = _drop_negligible((high - low) / levels)
    zeros = np.clip(np.rint(-low * _inverse(scales)), 0, grid.levels)
    return scales, zeros.astype(np.uint8)


def _codes(values: Array, grid: Grid, scales: Array, zeros: Array | None) -> Array:
    """Return the codes of blocks [..., block], rounded half to even."""
    import numpy as np

    codes: Array = values * _inverse(scales)[..., None]
    if zeros is None:
        return np.clip(np.rint(codes), -grid.levels, grid.levels).astype(np.int8)
    codes = np.rint(codes + zeros[..., None].astype(np.float32))
    return np.clip(codes, 0, grid.levels).astype(np.uint8)


def _drop_negligible(scales: Array) -> Array:
    """Replace scales below NEGLIGIBLE by zero."""
    import numpy as np

    return np.where(scales < np.float32(NEGLIGIBLE), np.float32(0), scales)


def _inverse(scales: Array) -> Array:
    """Return 1 / scale, and 0 for a block of zeros.

    The values are multiplied by it, as ONNX Runtime's tools do: a division rounds otherwise.
    """
    import numpy as np

    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)


def pack(values: Array, bits: int) -> Array:
    """Pack codes of 8 or 4 bits along the last axis into bytes, the first in the lowest bits.

    values: uint8 [..., n]. Returns uint8 [..., ceil(n * bits / 8)].
    """
    import numpy as np

    if bits == 8:
        return values
    padded = np.zeros((*values.shape[:-1], -(-values.shape[-1] // 2) * 2), np.uint8)
    padded[..., : values.shape[-1]] = values
    return np.asarray(padded[..., 0::2] | (padded[..., 1::2] << 4))
