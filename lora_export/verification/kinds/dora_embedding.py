"""DoRA on embedding tables, stored (num, dim): the lengths are those of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.learned_lengths import Dora
from lora_export.verification.formulas.live_output import changes, embed_scale
from lora_export.verification.formulas.one_product import product_of, turned_sides
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors

_DORA = Dora(product_of(turned_sides), by_column=True)


def _live(module: Any, ids: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run the forward of PEFT 0.21.2, tuners.lora.variants.DoraEmbeddingVariant."""
    import torch
    import torch.nn.functional as F

    scaling = scaling_of(delta)
    low_rank = factors["B"] @ factors["A"]
    length = torch.linalg.vector_norm(module.weight.T + scaling * low_rank, dim=1)
    factor = factors["M"] / length
    branch = F.embedding(ids, factors["A"].T) @ factors["B"].T * scaling
    change = (factor - 1) * F.embedding(ids, module.weight) + factor * branch
    scaled: torch.Tensor = change * embed_scale(module)
    return scaled


PROOF = ProofOfKind(
    "dora_embedding", change=_DORA.change, tangent=_DORA.tangent, live_output=changes(_live)
)
