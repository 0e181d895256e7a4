"""Rows of a weight in a few bits, in the arithmetic and layout of ONNX Runtime's kernels.

ONNX Runtime's own tools for this are not used; docs/decisions/0015-precision.md gives the reason.
They are the oracle of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.onnx_export.precision.grids import NEGLIGIBLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lora_export.onnx_export.precision.grids import Grid

    Array = NDArray[Any]

ROWS_AT_ONCE = 2048
"""Rows that are copied and padded at a time: the copy of a whole weight would double its memory."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight of R rows and C columns, rounded."""

    codes: Array
    """uint8 or int8 [R, blocks, block], padded with zeros behind the row's end."""
    scales: Array
    """float32 [R, blocks]."""
    zeros: Array | None
    """The zero points, uint8 [R, blocks]; None on a symmetric grid."""


def quantize_rows(rows: Array, grid: Grid) -> Rounded:
    """Round float32 rows [R, C] to the grid; a value is off by at most half a step.

    A value is `(code - zero point) * scale`. Scales are float32, as the kernels take them.
    """
    import numpy as np

    number, width = rows.shape
    block = grid.block or width
    blocks = -(-width // block)
    codes = np.zeros((number, blocks, block), np.int8 if grid.symmetric else np.uint8)
    scales = np.zeros((number, blocks), np.float32)
    zeros = None if grid.symmetric else np.zeros((number, blocks), np.uint8)
    for start in range(0, number, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        padded = np.zeros((len(rows[part]), blocks * block), np.float32)
        padded[:, :width] = rows[part]
        values = padded.reshape(-1, blocks, block)
        if zeros is None:
            codes[part], scales[part] = _symmetric(values, grid.levels)
        else:
            codes[part], scales[part], zeros[part] = _affine(values, grid.levels)
    # On an affine grid the padding has the code of zero, and the kernels' tools write zeros.
    codes.reshape(number, -1)[:, width:] = 0
    return Rounded(codes, scales, zeros)


def _symmetric(values: Array, levels: int) -> tuple[Array, Array]:
    """Return codes, rounded half to even, and scales of blocks [..., block]."""
    import numpy as np

    scales = _drop_negligible(np.abs(values).max(axis=-1) / np.float32(levels))
    codes = np.rint(values * _inverse(scales)[..., None])
    return np.clip(codes, -levels, levels).astype(np.int8), scales


def _affine(values: Array, levels: int) -> tuple[Array, Array, Array]:
    """Return codes, scales and zero points of blocks [..., block], rounded half to even.

    The range of a block always includes zero, so that a zero stays zero.
    """
    import numpy as np

    low, high = np.minimum(values.min(axis=-1), 0), np.maximum(values.max(axis=-1), 0)
    scales = _drop_negligible((high - low) / np.float32(levels))
    inverse = _inverse(scales)
    zeros = np.clip(np.rint(-low * inverse), 0, levels)
    codes = np.clip(np.rint(values * inverse[..., None] + zeros[..., None]), 0, levels)
    return codes.astype(np.uint8), scales, zeros.astype(np.uint8)


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
