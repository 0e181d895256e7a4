"""The unit roundoff of every dtype, which all bounds are made of."""

from __future__ import annotations

UNIT = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit roundoff u: half the distance from 1 to the next number."""

SPARE = 6
"""Relative errors of one unit that a library's own scaling and roundings add to an update at most.

The sums and products before add theirs. A sum of r products adds r of them to those of its terms.
A product has the sum of its factors' errors (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1)."""
