"""The Tucker product of LoHa and LoKr, whose core has the sizes of a convolution's kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum core[i, j, k, l] a[i, p] b[j, q] over i and j.

    Args:
        core: (r, r, k, l).
        a: (r, p).
        b: (r, q).

    Returns:
        (p, q, k * l), in the operands' dtype.
    """
    import torch

    rank = core.shape[0]
    inner = torch.matmul(b.T, core.reshape(rank, rank, -1))
    return torch.matmul(a.T, inner.reshape(rank, -1)).reshape(a.shape[1], b.shape[1], -1)
