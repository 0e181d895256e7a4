"""(IA)^3 on a layer's inputs, as for feed-forward modules: the weight's columns are multiplied."""

from __future__ import annotations

from math import prod
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
    """Return (l - 1) times every column of the weight, and its magnitude.

    Each group of a convolution has inputs of its own.
    """
    scales = factors["L"].reshape(-1)
    if delta.fan_in_fan_out:
        return multiplied(scales[rows][:, None], scaling, base)
    width, kernel = delta.shape[1], prod(delta.shape[2:])
    group = rows // (delta.shape[0] * width // len(scales))
    inputs = group[:, None] * width + rows.new_tensor(range(width))
    per_column = scales[inputs][:, :, None].expand(-1, -1, kernel)
    return multiplied(per_column.reshape(len(rows), -1), scaling, base)


def _live(
    module: Any,
    x: Any,
    _: torch.Tensor,
    factors: Factors,
    delta: Delta,
) -> torch.Tensor:
    """Run the forward of PEFT 0.21.2, tuners.ia3.layer, Linear with is_feedforward: input times l.

    `module.forward` is called without hooks, since the hook of this branch calls it.
    """
    scales = strength(factors, delta).reshape(-1, *(1 for _ in delta.shape[2:]))
    result: torch.Tensor = module.forward(x * scales)
    return result


PROOF = ProofOfKind("ia3_feedforward", change=_change, live_output=_live)
