"""The input projection of torch's MultiheadAttention: one product for query, key and value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.formulas.one_product import product_of, stored_sides
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    from torch import nn

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import LiveBranch


def _live(module: nn.Module, delta: Delta) -> LiveBranch:
    from lora_export.verification.formulas.attention_parameter import AttentionBranch

    return AttentionBranch(module, delta)


PROOF = ProofOfKind(
    "attention_in",
    formula=product_of(stored_sides),
    sides=stored_sides,
    is_screened=True,
    live_parameter=_live,
)
