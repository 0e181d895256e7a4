"""DoRA on convolutions: the lengths are those of each output channel's kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.learned_lengths import Dora
from lora_export.verification.formulas.live_output import changes
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.formulas.second_layer import convolution_of
from lora_export.verification.kinds.peft_conv import kernel_update, live_kernel
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors

_DORA = Dora(kernel_update)


def _live(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run the forward of PEFT 0.21.2, tuners.lora.dora._DoraConvNdLayer.

    PEFT takes the lengths from the product of the flattened factors.
    """
    import torch

    scaling = scaling_of(delta)
    a, b = factors["A"], factors["B"]
    low_rank = (b.reshape(-1, len(a)) @ a.reshape(len(a), -1)).reshape(module.weight.shape)
    moved = (module.weight + scaling * low_rank).flatten(1)
    ones = (1,) * (module.weight.dim() - 2)
    factor = (factors["M"].flatten() / torch.linalg.vector_norm(moved, dim=1)).view(-1, *ones)
    base = convolution_of(module)(
        x, module.weight, None, module.stride, module.padding, module.dilation
    )
    branch = live_kernel(module, x, factors, delta) * scaling
    change: torch.Tensor = (factor - 1) * base + factor * branch
    return change


PROOF = ProofOfKind(
    "dora_conv", change=_DORA.change, tangent=_DORA.tangent, live_output=changes(_live)
)
