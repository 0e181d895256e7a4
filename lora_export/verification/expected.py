"""The update recomputed from its definition, on its own path: it shares no code with the merge.

Formulas of loralib 0.1.2's layers, for chosen rows of the update's matrix and in any dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from lora_export.records import Delta

    Formula = Callable[[Delta, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _linear(delta: Delta, a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    if delta.fan_in_fan_out:
        return a[:, rows].T @ b.T
    return b[rows] @ a


def _embedding(_: Delta, a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return a[:, rows].T @ b.T


def _conv(_: Delta, a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of the (out//groups*k, in*k) matrix, which has the kernel's elements in their order."""
    return b[rows] @ a


def _merged_linear(
    delta: Delta, a: torch.Tensor, b: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Block by block: the i-th enabled block is B[i*o:(i+1)*o] @ A[i*r:(i+1)*r]."""
    import torch

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
    """The factors of every block; (None, ...) for a disabled one."""
    found: list[tuple[torch.Tensor | None, torch.Tensor]] = []
    done = 0
    for enabled in delta.enable_lora:
        left = b[done * size : (done + 1) * size]
        found.append((a[done * delta.rank : (done + 1) * delta.rank] if enabled else None, left))
        done += enabled
    return found


FORMULAS: dict[str, Formula] = {
    "linear": _linear,
    "embedding": _embedding,
    "conv": _conv,
    "merged_linear": _merged_linear,
}
"""One formula a layer kind; a test holds the keys against the kinds."""
