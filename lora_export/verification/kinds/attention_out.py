"""The output projection of torch's MultiheadAttention: PEFT adds its update twice, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.formulas.unit_roundoff import UNIT
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors, LiveBranch


def _change(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the update twice, with the roundings to delta.dtype that the library has between.

    The first addition rounds update and sum, the second starts from that. Computed as if without
    errors before these roundings; an error there may carry an element over the middle between two
    numbers, so both count as whole roundings.
    """
    from lora_export.checkpoint.tensors import torch_dtype

    update, size = _update(factors, scaling, rows)
    dtype = torch_dtype(delta.dtype)
    half = base + update.to(dtype).double()
    between = half.to(dtype).double()
    units = UNIT[delta.dtype] / UNIT["F64" if delta.dtype == "F64" else "F32"]
    rounded = (half.abs() + update.abs()) * (2 * units / (2 * delta.rank + 7))
    return between + update - base, 2 * size + rounded


def _tangent(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return twice the update, and the magnitude of the products' errors.

    Roundings to delta.dtype go either way, so they do not count here.
    """
    update, size = _update(factors, scaling, rows)
    few = (base.abs() + update.abs()) * (4 / (2 * delta.rank + 7))
    return 2 * update, 2 * size + few


def _update(
    factors: Factors, scaling: float, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = factors["A"], factors["B"][rows]
    return (b @ a) * scaling, (b.abs() @ a.abs()) * abs(scaling)


def _live(module: nn.Module, delta: Delta) -> LiveBranch:
    from lora_export.verification.formulas.attention_parameter import AttentionBranch

    return AttentionBranch(module, delta, times=2)


PROOF = ProofOfKind("attention_out", change=_change, tangent=_tangent, live_parameter=_live)
