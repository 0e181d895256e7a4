"""The initializers that hold a rounded weight, in the layout that each operator takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.onnx_export.file.weight_blocks import Made
from lora_export.onnx_export.precision.quantize import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.onnx_export.precision.quantize import Array, RoundedRows


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the initializers that hold a rounded weight."""

    codes: str
    scales: str
    zeros: str
    """The zero points; "" on a symmetric grid."""


def table_parts(names: Names, rounded: RoundedRows) -> dict[str, Made]:
    """Return the parts of a table whose rows are looked up: codes [R, C], scales [R, 1]."""
    import numpy as np

    def codes() -> Iterator[Array]:
        return (part.codes[:, 0] for part in rounded.parts())

    shape = rounded.rows.shape
    return {
        names.codes: Made(shape, np.dtype(np.int8), codes),
        names.scales: Made((shape[0], 1), np.dtype(np.float32), lambda: iter(rounded.steps()[:1])),
    }


def column_parts(names: Names, rounded: RoundedRows) -> dict[str, Made]:
    """Return the parts that MatMulInteger takes: codes [C, R], one scale and zero point a row.

    Codes and zero points are uint8, or int8 on a signed grid.
    """
    import numpy as np

    number, width = rounded.rows.shape
    kind = np.dtype(np.int8 if rounded.grid.signed else np.uint8)

    def stored(codes: Array) -> Array:
        # The highest bit turned is 128 less, where the byte is read as a signed one.
        return (codes ^ 128).view(kind) if rounded.grid.signed else codes

    def columns() -> Iterator[Array]:
        return (stored(part) for part in rounded.columns())

    return {
        names.codes: Made((width, number), kind, columns),
        names.scales: Made(
            (number,), np.dtype(np.float32), lambda: iter([rounded.steps()[0][:, 0]])
        ),
        names.zeros: Made((number,), kind, lambda: iter([stored(_zeros(rounded)[:, 0])])),
    }


def block_parts(names: Names, rounded: RoundedRows) -> dict[str, Made]:
    """Return the parts that MatMulNBits takes: codes [R, blocks, bytes], scales, packed zeros."""
    import numpy as np

    number, bits = rounded.rows.shape[0], rounded.grid.bits
    shape, packed = (number, rounded.blocks), (number, -(-rounded.blocks * bits // 8))
    byte = np.dtype(np.uint8)

    def codes() -> Iterator[Array]:
        return (pack(part.codes, bits) for part in rounded.parts())

    def zeros() -> Iterator[Array]:
        yield pack(_zeros(rounded), bits)

    return {
        names.codes: Made((*shape, rounded.block * bits // 8), byte, codes),
        names.scales: Made(shape, np.dtype(np.float32), lambda: iter(rounded.steps()[:1])),
        names.zeros: Made(packed, byte, zeros),
    }


def _zeros(rounded: RoundedRows) -> Array:
    _, zeros = rounded.steps()
    if zeros is None:
        raise AssertionError(rounded.grid)
    return zeros
