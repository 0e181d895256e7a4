"""MergedLinear: one product for each enabled block of a weight, zeros for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _formula(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of the unscaled update, block by block.

    The i-th enabled block is B[i*o:(i+1)*o] @ A[i*r:(i+1)*r]; a disabled one is zeros.
    """
    import torch

    a, b = factors["A"], factors["B"]
    size = b.shape[0] // sum(delta.enable_lora)
    if delta.fan_in_fan_out:
        nothing = b.new_zeros(len(rows), size)
        parts = [
            nothing if a_block is None else a_block[:, rows].T @ b_block.T
            for a_block, b_block in _blocks(delta, a, b, size)
        ]
        return torch.cat(parts, dim=1)
    update = b.new_zeros(len(rows), a.shape[1])
    for place, (a_block, b_block) in enumerate(_blocks(delta, a, b, size)):
        if a_block is not None:
            inside = (rows >= place * size) & (rows < (place + 1) * size)
            update[inside] = b_block[rows[inside] - place * size] @ a_block
    return update


def _blocks(
    delta: Delta, a: torch.Tensor, b: torch.Tensor, size: int
) -> list[tuple[torch.Tensor | None, torch.Tensor]]:
    """Return the factors of every block; (None, ...) for a disabled one."""
    found: list[tuple[torch.Tensor | None, torch.Tensor]] = []
    done = 0
    for enabled in delta.enable_lora:
        left = b[done * size : (done + 1) * size]
        found.append((a[done * delta.rank : (done + 1) * delta.rank] if enabled else None, left))
        done += enabled
    return found


def _live(_: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run every enabled block with its own factors; a disabled one adds zeros."""
    import torch

    b = factors["B"]
    downs = iter(torch.split(factors["A"], delta.rank))
    ups = iter(b.chunk(sum(delta.enable_lora)))
    size = b.shape[0] // sum(delta.enable_lora)
    zeros = x.new_zeros((*x.shape[:-1], size))
    parts = [(x @ next(downs).T) @ next(ups).T if on else zeros for on in delta.enable_lora]
    return torch.cat(parts, dim=-1)


PROOF = ProofOfKind("merged_linear", formula=_formula, is_screened=True, live_output=adds(_live))
