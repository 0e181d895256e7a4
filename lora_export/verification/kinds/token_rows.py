"""Trained rows of a table: the expected rows, and the live layer that reads them.

Reproduces PEFT 0.21.2, tuners.trainable_tokens.layer.TrainableTokensLayer.forward_adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import embed_scale
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _change(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the difference of the trained rows to the base's, and its magnitude."""
    import torch

    update = torch.zeros_like(base)
    magnitude = torch.zeros_like(base)
    for token, trained in zip(delta.indices, factors["rows"], strict=True):
        place = rows == token
        update[place] = (trained - base[place]) * scaling
        magnitude[place] = (trained.abs() + base[place].abs()) * abs(scaling)
    return update, magnitude


def _live(
    module: Any,
    x: Any,
    output: torch.Tensor,
    factors: Factors,
    delta: Delta,
) -> torch.Tensor:
    """Run the layer with the trained rows: a table looks ids up, a head has a column a token."""
    import torch

    weight, rows = module.weight.to(output.dtype), factors["rows"]
    tokens = torch.tensor(delta.indices)
    moved = (rows - weight[tokens]) * delta.weight
    if x.is_floating_point():
        return output.index_add(-1, tokens, x @ moved.T)
    places = (x[..., None] == tokens).to(output.dtype)
    added: torch.Tensor = (places @ moved) * embed_scale(module)
    return output + added


PROOF = ProofOfKind("token_rows", change=_change, live_output=_live)
