"""The bias that PEFT's lora_bias puts on B, added to the layer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _formula(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    return factors["bias"][rows].reshape(-1, 1)


def _live(module: Any, _: Any, factors: Factors, __: Delta) -> torch.Tensor:
    """Return the bias of lora_B, for every place of a convolution's output."""
    return factors["bias"].view(-1, *(1,) * (module.weight.dim() - 2))


PROOF = ProofOfKind("lora_bias", formula=_formula, live_output=adds(_live))
