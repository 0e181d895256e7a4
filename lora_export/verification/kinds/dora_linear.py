"""DoRA on linear layers: the lengths are those of outputs, in rows or in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.learned_lengths import Dora
from lora_export.verification.formulas.live_output import changes
from lora_export.verification.formulas.one_product import oriented_sides, product_of
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors

_DORA = Dora(product_of(oriented_sides))


def _live(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run the forward of PEFT 0.21.2, tuners.lora.dora.DoraLinearLayer.

    PEFT recomputes the base's output without its bias.
    """
    import torch.nn.functional as F

    scaling = scaling_of(delta)
    weight = module.weight.T if delta.fan_in_fan_out else module.weight
    factor = factors["M"] / _lengths(weight, factors, scaling)
    branch = F.linear(F.linear(x, factors["A"]), factors["B"]) * scaling
    change: torch.Tensor = (factor - 1) * F.linear(x, weight) + factor * branch
    return change


def _lengths(weight: Any, factors: Factors, scaling: float) -> torch.Tensor:
    """Return the lengths of the rows of the weight with its update.

    A weight that is read while the model runs gives its rows block by block.
    """
    import torch

    blocks = getattr(weight, "blocks", None)
    if blocks is None:
        low_rank = factors["B"] @ factors["A"]
        whole: torch.Tensor = torch.linalg.vector_norm(weight + scaling * low_rank, dim=1)
        return whole
    parts = [
        torch.linalg.vector_norm(rows + scaling * (factors["B"][first:stop] @ factors["A"]), dim=1)
        for first, stop, rows in blocks()
    ]
    return torch.cat(parts)


PROOF = ProofOfKind(
    "dora_linear", change=_DORA.change, tangent=_DORA.tangent, live_output=changes(_live)
)
