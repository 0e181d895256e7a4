"""Embedding tables, stored (num, dim): the product B A transposed."""

from __future__ import annotations

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.formulas.one_product import (
    columns_of_a,
    live_product,
    product_of,
    turned_sides,
)
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

PROOF = ProofOfKind(
    "embedding",
    formula=product_of(turned_sides),
    sides=turned_sides,
    part_of_factors=columns_of_a,
    is_screened=True,
    live_output=adds(live_product),
)
