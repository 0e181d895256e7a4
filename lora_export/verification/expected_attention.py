"""The output projection of an attention recomputed: PEFT adds its update twice, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.weights.rounding import UNIT

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.expected import Factors


def out_change(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first addition rounds update and sum to delta.dtype, the second starts from that.

    Computed as if without errors before these roundings; an error there may carry an element over
    the middle between two numbers, so both count as whole roundings.
    """
    from lora_export.checkpoint.tensors import torch_dtype

    update, size = _update(factors, scaling, rows)
    dtype = torch_dtype(delta.dtype)
    half = base + update.to(dtype).double()
    between = half.to(dtype).double()
    units = UNIT[delta.dtype] / UNIT["F64" if delta.dtype == "F64" else "F32"]
    rounded = (half.abs() + update.abs()) * (2 * units / (2 * delta.rank + 7))
    return between + update - base, 2 * size + rounded


def out_tangent(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Twice the update; roundings to delta.dtype go either way, so only the products' errors."""
    update, size = _update(factors, scaling, rows)
    few = (base.abs() + update.abs()) * (4 / (2 * delta.rank + 7))
    return 2 * update, 2 * size + few


def _update(
    factors: Factors, scaling: float, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = factors["A"], factors["B"][rows]
    return (b @ a) * scaling, (b.abs() @ a.abs()) * abs(scaling)
