"""Linear layers: the product B A, or its transpose where the weight is stored (in, out)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.formulas.one_product import (
    columns_of_a,
    live_product,
    oriented_sides,
    product_of,
)
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _part_of_factors(delta: Delta, factors: Factors, rows: torch.Tensor) -> Factors:
    if delta.fan_in_fan_out:
        return columns_of_a(delta, factors, rows)
    return {"A": factors["A"], "B": factors["B"][rows]}


PROOF = ProofOfKind(
    "linear",
    formula=product_of(oriented_sides),
    sides=oriented_sides,
    part_of_factors=_part_of_factors,
    is_screened=True,
    live_output=adds(live_product),
)
