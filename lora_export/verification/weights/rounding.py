"""How far a correctly merged element may lie from the exact one, derived from the arithmetic.

Standard model of rounding (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1):
a sum of r products, in any order, is off by at most r u / (1 - r u) times the sum of magnitudes;
each later operation adds one relative error u of its own dtype.
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
_WIDTH = {"BF16": 0, "F16": 0, "F32": 1, "F64": 2}


def product_dtype(delta: Delta, stored: str, *, exact: bool) -> str:
    """The dtype in which the update is computed and scaled: the widest of weight and factors."""
    loaded = delta.loaded if not exact else ""
    dtypes = {stored, *(loaded or ref.spec.dtype for ref in delta.factors.values())}
    widest = max(dtypes, key=lambda dtype: _WIDTH[dtype])
    mixed_halves = dtypes >= HALF_DTYPES
    in_float = exact or mixed_halves or delta.recipe != "loralib"
    return "F32" if _WIDTH[widest] == 0 and in_float else widest


def update_error(deltas: Sequence[Delta], stored: str, *, exact: bool) -> tuple[float, float]:
    """(share, rest): the computed update is off by at most share * magnitude + rest.

    magnitude is the sum over absolute values of the scaled products, of all updates together.
    """
    shares, rest = [], 0.0
    for delta in deltas:
        dtype = product_dtype(delta, stored, exact=exact)
        accumulated = UNIT["F64" if dtype == "F64" else "F32"]
        steps = proof_of(delta).roundings(delta) * accumulated + (2 + len(deltas)) * UNIT[dtype]
        rounds_first = not exact and delta.recipe in all_kinds()[delta.kind].twice
        shares.append(1.01 * (steps + (UNIT[stored] if rounds_first else 0.0)))
        rest += _TINY[dtype] * (abs(delta.scaling * delta.weight) + 1)
    return max(shares), rest


def element_bound(exact: torch.Tensor, error: torch.Tensor, stored: str) -> torch.Tensor:
    """Largest possible error of a stored element: that of the update, the add, the rounding.

    exact: float64 values. error: the largest possible error of the update, elementwise.
    """
    add = UNIT[stored] + (UNIT["F32"] if stored in HALF_DTYPES else UNIT[stored])
    return exact.abs().add_(error).mul_(add * 1.01).add_(error).add_(_TINY[stored])
