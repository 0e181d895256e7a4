"""AdaLoRA: B diag(E) A, where E holds the singular values that are left after pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.formulas.second_layer import beside
from lora_export.verification.formulas.unit_roundoff import SPARE
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _formula(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of B diag(E) A, or of its transpose."""
    a, b, e = factors["A"], factors["B"], factors["E"].reshape(-1)
    if delta.fan_in_fan_out:
        return (a[:, rows].T * e) @ b.T
    return (b[rows] * e) @ a


def _roundings(delta: Delta) -> int:
    """Count A * E, the sum, and the scaling, whose `ranknum + 1e-5` is rounded as well."""
    return delta.rank + 4 + SPARE


def _live(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run the forward of PEFT 0.21.2, tuners.adalora.layer, SVDLinear.

    A convolution takes the update as a second kernel.
    """
    down = (factors["A"] * factors["E"]).T
    if len(delta.shape) > 2:
        return beside(module, x, (down @ factors["B"].T).T.reshape(delta.shape))
    result: torch.Tensor = x @ down @ factors["B"].T
    return result


PROOF = ProofOfKind("adalora", formula=_formula, roundings=_roundings, live_output=adds(_live))
