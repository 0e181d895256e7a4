"""LoHa: the elementwise product of two low-rank products."""

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


def _formula(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of the elementwise product of both sides."""
    return _side(factors, "1", rows) * _side(factors, "2", rows)


def _side(factors: Factors, side: str, rows: torch.Tensor) -> torch.Tensor:
    a, b = factors[f"w{side}_a"], factors[f"w{side}_b"]
    if f"t{side}" not in factors:
        return a[rows] @ b
    return tucker(factors[f"t{side}"], a[:, rows], b).reshape(len(rows), -1)


def _roundings(delta: Delta) -> int:
    """Count two sums of r terms each, or two of r sums of r terms."""
    depth = 2 if "t1" in delta.factors else 1
    return 2 * depth * delta.rank + SPARE


def _live(module: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run a second layer as PEFT 0.21.2 does in tuners.loha.layer, _get_delta_activations."""
    import torch

    sides = []
    for side in "12":
        a, b, core = factors[f"w{side}_a"], factors[f"w{side}_b"], factors.get(f"t{side}")
        sides.append(a @ b if core is None else torch.einsum("ijkl,ip,jr->prkl", core, a, b))
    return beside(module, x, (sides[0] * sides[1]).reshape(delta.shape))


PROOF = ProofOfKind("loha", formula=_formula, roundings=_roundings, live_output=adds(_live))
