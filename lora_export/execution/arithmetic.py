"""The merge itself, by the very torch calls of the reference, so that the bits are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor
from lora_export.errors import FitError, InputError
from lora_export.layers import all_kinds

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta, Step


def merged_weight(step: Step, *, recipe: str, allow_noop: bool) -> torch.Tensor:
    """The step's base tensor with its updates merged in, in the base's dtype and shape.

    With recipe "auto" and one adapter of weight 1: loralib 0.1.2's `weight.data += delta *
    scaling`, in the dtypes that loralib would use. Else the exact sum `W + sum(w_i * s_i * P_i)`
    in float32 (float64 for a float64 base), rounded once.

    Raises:
        InputError: a factor holds NaN or infinity.
        FitError: the result overflows the base's dtype, or equals the base.
    """
    import torch

    base = read_tensor(step.source)
    single = len(step.deltas) == 1 and step.deltas[0].weight == 1.0
    if recipe == "auto" and single:
        delta = step.deltas[0]
        weight = base.clone()
        weight += _product(delta, base.dtype) * delta.scaling
    else:
        weight = _exact_sum(step, base)
    if torch.equal(weight, base) and not allow_noop:
        raise FitError(
            "the merged weight equals the base: the update is below its precision",
            where=step.out.name,
            hint="merge into a base of higher precision, or accept it with --allow-noop",
        )
    if not torch.isfinite(weight).all() and torch.isfinite(base).all():
        message = f"the merged weight overflows {step.out.dtype}"
        raise FitError(message, where=step.out.name, hint="is alpha right?")
    return weight


def _exact_sum(step: Step, base: torch.Tensor) -> torch.Tensor:
    import torch

    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    total = base.to(wide)
    update = torch.zeros_like(total)
    for delta in step.deltas:
        update += _product(delta, wide) * (delta.scaling * delta.weight)
    return (total + update).to(base.dtype)


def _product(delta: Delta, weight_dtype: torch.dtype) -> torch.Tensor:
    """The unscaled update, in the factors' dtype or the weight's, whichever is wider.

    A loralib module holds its factors in the weight's dtype, so loading half-precision factors
    into a float32 module widens them before the product.
    """
    import torch

    factors = {role: read_tensor(ref) for role, ref in delta.factors.items()}
    for role, factor in factors.items():
        if not torch.isfinite(factor).all():
            where = f"{delta.adapter}: {delta.module}.lora_{role}"
            raise InputError("holds NaN or infinity", where=where, hint="did training diverge?")
    wide = weight_dtype
    for factor in factors.values():
        wide = torch.promote_types(wide, factor.dtype)
    wide_factors = {role: factor.to(wide) for role, factor in factors.items()}
    return all_kinds()[delta.kind].product(delta, wide_factors)
