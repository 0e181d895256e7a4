"""Convolutions of loralib: the product B A, whose elements are the kernel's in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.formulas.one_product import product_of, stored_sides
from lora_export.verification.formulas.second_layer import beside
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _live(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run a second convolution beside the first: convolution is linear in its kernel."""
    return beside(module, x, (factors["B"] @ factors["A"]).reshape(delta.shape))


PROOF = ProofOfKind(
    "conv",
    formula=product_of(stored_sides),
    sides=stored_sides,
    is_screened=True,
    live_output=adds(_live),
)
