"""How far a correctly merged element may lie from the exact one, derived from the arithmetic.

Standard model of rounding (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1):
a sum of r products, in any order, is off by at most r u / (1 - r u) times the sum of magnitudes;
each later operation adds one relative error u of its own dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from lora_export.records import Delta

    Array = npt.NDArray[np.float64]

UNIT = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit roundoff u: half the distance from 1 to the next number."""

_TINY = {"F64": 2.0**-1074, "F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}
_WIDTH = {"BF16": 0, "F16": 0, "F32": 1, "F64": 2}


def product_dtype(delta: Delta, stored: str, *, exact: bool) -> str:
    """The dtype in which the update is computed and scaled: the widest of weight and factors."""
    dtypes = {stored, *(ref.spec.dtype for ref in delta.factors.values())}
    widest = max(dtypes, key=lambda dtype: _WIDTH[dtype])
    mixed_halves = {"BF16", "F16"} <= dtypes
    return "F32" if _WIDTH[widest] == 0 and (exact or mixed_halves) else widest


def update_bound(
    deltas: Sequence[Delta], magnitudes: Sequence[Array], stored: str, *, exact: bool
) -> Array:
    """Largest possible error of the computed update, elementwise: products, scaling, sums."""
    total: Any = 0.0
    for delta, magnitude in zip(deltas, magnitudes, strict=True):
        dtype = product_dtype(delta, stored, exact=exact)
        accumulated = UNIT["F64" if dtype == "F64" else "F32"]
        steps = (2 * delta.rank + 4) * accumulated + (2 + len(deltas)) * UNIT[dtype]
        total = total + 1.01 * steps * magnitude + _TINY[dtype] * (abs(delta.scaling) + 1)
    bound: Array = total
    return bound


def element_bound(exact: Array, update_error: Array, stored: str) -> Array:
    """Largest possible error of a stored element: that of the update, the add, the rounding."""
    import numpy as np

    add = UNIT[stored] + (UNIT["F32"] if stored in ("F16", "BF16") else UNIT[stored])
    bound: Array = (np.abs(exact) + update_error) * add * 1.01 + update_error + _TINY[stored]
    return bound


def rounded(values: Array, stored: str) -> Array:
    """`values` as the nearest numbers of the stored dtype (bfloat16 through float32, as torch)."""
    import numpy as np

    if stored == "F64":
        return values
    with np.errstate(over="ignore"):
        if stored != "BF16":
            kind = np.float32 if stored == "F32" else np.float16
            return values.astype(kind).astype(np.float64)
        bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)
