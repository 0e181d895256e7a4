"""The output projection of torch's MultiheadAttention, to which PEFT adds its update twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.formulas.unit_roundoff import UNIT, units_of_share
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors, LiveBranch


def _change(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the update twice, with the library's roundings to delta.dtype between both additions.

    The first addition rounds the update and the sum. The second one starts from that. An error
    before these roundings may move an element over the middle between two numbers. Both therefore
    count as whole roundings, of two half units each, in the magnitude.
    """
    from lora_export.checkpoint.tensors import torch_dtype

    update, size = _update(factors, scaling, rows)
    dtype = torch_dtype(delta.dtype)
    half = base + update.to(dtype).double()
    between = half.to(dtype).double()
    units = UNIT[delta.dtype] / UNIT["F64" if delta.dtype == "F64" else "F32"]
    rounded = (half.abs() + update.abs()) * (2 * units / units_of_share(delta))
    return between + update - base, 2 * size + rounded


def _tangent(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return twice the update, and the magnitude of the products' errors.

    The roundings to delta.dtype go up or down by chance, so they have no direction and are left
    out. Four units of the sum's own dtype remain.
    """
    update, size = _update(factors, scaling, rows)
    few = (base.abs() + update.abs()) * (4 / units_of_share(delta))
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
