"""Combines the result of a live branch with the output of its module, in either of two ways."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.scaling import scaling_of

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors, LiveOutput, LivePart


def adds(part: LivePart) -> LiveOutput:
    """Return a branch that adds the scaled result of `part` to the module's output."""

    def output_of(
        module: Any,
        x: Any,
        output: torch.Tensor,
        factors: Factors,
        delta: Delta,
    ) -> torch.Tensor:
        return output + part(module, x, factors, delta) * scaling_of(delta)

    return output_of


def changes(part: LivePart) -> LiveOutput:
    """Return a branch that adds the result of `part` times the user's weight to the output.

    `part` applies the scaling itself. It takes the update with weight 1, because the user's weight
    scales the whole change.
    """

    def output_of(
        module: Any,
        x: Any,
        output: torch.Tensor,
        factors: Factors,
        delta: Delta,
    ) -> torch.Tensor:
        alone = replace(delta, weight=1.0)
        return output + part(module, x, factors, alone) * delta.weight

    return output_of


def embed_scale(module: Any) -> Any:
    """Return the factor by which an embedding multiplies its rows, as Gemma 3's do; else 1."""
    return getattr(module, "embed_scale", 1.0)
