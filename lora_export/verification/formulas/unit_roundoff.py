"""The unit roundoff of every dtype; all bounds are multiples of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_export.records import Delta

UNIT = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit roundoff u: half the distance from 1 to the next number."""

SPARE = 6
"""Relative errors, in units, that a library's own scaling and roundings add to an update at most.

A kind adds the errors of its sums and products. A sum of r products has r units more than its
terms. A product has the sum of its factors' errors (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1)."""


def units_of_share(delta: Delta) -> int:
    """Return how many u a share of weights.rounding.update_error is at least, for one product.

    They are 2 r + 4 of the product, its result, its scaling, and at least one addition. A change
    formula counts its further errors in u. It divides them by this number, because its caller
    multiplies the magnitude by the share.
    """
    return 2 * delta.rank + 7
