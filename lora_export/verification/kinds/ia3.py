"""(IA)^3 on a layer's outputs: its weight's rows and its bias are multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.vector_scales import multiplied, strength
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _change(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (l - 1) times every row of the weight or element of the bias, and its magnitude."""
    scales = factors["L"].reshape(-1)
    by_row = scales[None, :] if delta.fan_in_fan_out else scales[rows][:, None]
    return multiplied(by_row, scaling, base)


def _live(
    _: Any,
    __: Any,
    output: torch.Tensor,
    factors: Factors,
    delta: Delta,
) -> torch.Tensor:
    """Run the forward of PEFT 0.21.2, tuners.ia3.layer, Linear: the output times l.

    The output contains the bias, so the update of the bias itself changes nothing more.
    """
    if delta.parameter == "bias":
        return output
    scales = strength(factors, delta)
    return output * scales.reshape(-1, *(1 for _ in delta.shape[2:]))


PROOF = ProofOfKind("ia3", change=_change, live_output=_live)
