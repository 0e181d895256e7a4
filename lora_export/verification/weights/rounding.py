"""Derives how far a correctly merged element may be from the exact one, from the arithmetic.

It follows the standard model of rounding (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1). A sum of r products, in any order, is off by at most r u / (1 - r u) times the sum of
their magnitudes. Each later operation adds one relative error u of its own dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers import all_kinds
from lora_export.records import HALF_DTYPES
from lora_export.verification.formulas.unit_roundoff import UNIT
from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_export.records import Delta

_TINY = {"F64": 2.0**-1074, "F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}
"""The smallest positive number of a dtype: the absolute error where relative errors do not hold."""

_WIDTH = {"BF16": 0, "F16": 0, "F32": 1, "F64": 2}
"""The order of dtypes by their precision."""

_HIGHER_ORDER = 1.01
"""Covers the products of errors, which a sum of relative errors leaves out."""


def product_dtype(delta: Delta, stored: str, *, exact: bool) -> str:
    """Return the dtype in which the update is computed: the widest of the weight and the factors.

    Half precision is widened to float32 by PEFT, by an exact sum, and where both kinds of it meet.

    Args:
        delta: the update.
        stored: the weight's dtype, by its name in the file.
        exact: whether the step is an exact sum; see execution.arithmetic.is_exact_sum.
    """
    loaded = delta.loaded if not exact else ""
    dtypes = {stored, *(loaded or ref.spec.dtype for ref in delta.factors.values())}
    widest = max(dtypes, key=lambda dtype: _WIDTH[dtype])
    mixed_halves = dtypes >= HALF_DTYPES
    in_float = exact or mixed_halves or delta.recipe != "loralib"
    return "F32" if _WIDTH[widest] == 0 and in_float else widest


def update_error(deltas: Sequence[Delta], stored: str, *, exact: bool) -> tuple[float, float]:
    """Return (share, rest): the computed update is off by at most share * magnitude + rest.

    The magnitude is the sum over absolute values of the scaled products, of all updates together.

    Args:
        deltas: the updates of one tensor.
        stored: the weight's dtype, by its name in the file.
        exact: whether the step is an exact sum; see execution.arithmetic.is_exact_sum.
    """
    shares, rest = [], 0.0
    for delta in deltas:
        dtype = product_dtype(delta, stored, exact=exact)
        accumulated = UNIT["F64" if dtype == "F64" else "F32"]
        # The kind's own operations; then the product's result, the scaling, and one addition for
        # each update.
        steps = proof_of(delta).roundings(delta) * accumulated + (2 + len(deltas)) * UNIT[dtype]
        rounds_first = not exact and delta.recipe in all_kinds()[delta.kind].twice
        shares.append(_HIGHER_ORDER * (steps + (UNIT[stored] if rounds_first else 0.0)))
        rest += _TINY[dtype] * (abs(delta.scaling * delta.weight) + 1)
    return max(shares), rest


def element_bound(
    exact: torch.Tensor, error: torch.Tensor, stored: str, *, once: bool = False
) -> torch.Tensor:
    """Return the largest possible error of each stored element, in float64.

    It is that of the update, of the addition, and of the rounding to the stored dtype.

    Args:
        exact: the exact elements, in float64.
        error: the largest possible error of the update, of the same shape.
        stored: the weight's dtype, by its name in the file.
        once: whether the sum in float32 or float64 is rounded once to a dtype of half precision.
            The bound is then half the distance of two neighbours there, and not a relative error.
    """
    if once and stored in HALF_DTYPES:
        return _half_step(exact, error, stored)
    # Half precision is added in float32 and then rounded.
    add = UNIT[stored] + (UNIT["F32"] if stored in HALF_DTYPES else UNIT[stored])
    return exact.abs().add_(error).mul_(add * _HIGHER_ORDER).add_(error).add_(_TINY[stored])


def _half_step(exact: torch.Tensor, error: torch.Tensor, stored: str) -> torch.Tensor:
    """Bound the error of elements that are summed in float32, and then rounded once to `stored`."""
    import torch

    error = error + exact.abs() * (UNIT["F32"] * _HIGHER_ORDER)
    # The sum is below 2^exponent, and its neighbours are apart by 2 * unit * 2^(exponent - 1).
    _, exponent = torch.frexp(exact.abs().add_(error))
    half_step = torch.ldexp(torch.full_like(error, UNIT[stored] / 2), exponent)
    return half_step.add_(error).add_(_TINY[stored])
