"""LoKr: the Kronecker product of a small matrix and a larger one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.formulas.second_layer import beside
from lora_export.verification.formulas.tucker import tucker
from lora_export.verification.formulas.unit_roundoff import SPARE
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors

_OWN_ALIGNMENT = 3
"""Dimensions of an undecomposed w2 of a Conv1d, whose kernel torch.kron pairs with w1's inputs."""


def _formula(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of the product, of which element (a*b, c*d) is w1[a, c] w2[b, d]."""
    import torch

    w1 = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    w2 = _right(factors)
    if "w2" in factors and w2.dim() == _OWN_ALIGNMENT:
        # torch.kron aligns the last dimensions: w1 is (1, a, c) beside (b, d, k).
        whole = torch.einsum("ac,bdk->badck", w1, w2)
        return whole.reshape(w1.shape[0] * w2.shape[0], -1)[rows]
    flat = w2.reshape(w2.shape[0], -1)
    left = w1[torch.div(rows, len(flat), rounding_mode="floor")]
    return torch.einsum("nc,nd->ncd", left, flat[rows % len(flat)]).reshape(len(rows), -1)


def _right(factors: Factors) -> torch.Tensor:
    if "w2" in factors:
        return factors["w2"]
    if "t2" in factors:
        return tucker(factors["t2"], factors["w2_a"], factors["w2_b"])
    return factors["w2_a"] @ factors["w2_b"]


def _roundings(delta: Delta) -> int:
    """Count the sums of r terms: one for a decomposed w1, one or two for a decomposed w2."""
    left = delta.rank if "w1_a" in delta.factors else 0
    right = delta.rank * (2 if "t2" in delta.factors else 1) if "w2_a" in delta.factors else 0
    return left + right + SPARE


def _live(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run a second layer as PEFT 0.21.2 does in tuners.lokr.layer, _get_delta_activations."""
    import torch

    w1 = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    if "w2" in factors:
        w2 = factors["w2"]
    elif "t2" in factors:
        w2 = torch.einsum("ijkl,ip,jr->prkl", factors["t2"], factors["w2_a"], factors["w2_b"])
    else:
        w2 = factors["w2_a"] @ factors["w2_b"]
    if w2.dim() == 4:
        w1 = w1[:, :, None, None]
    return beside(module, x, torch.kron(w1, w2.contiguous()).reshape(delta.shape))


PROOF = ProofOfKind("lokr", formula=_formula, roundings=_roundings, live_output=adds(_live))
