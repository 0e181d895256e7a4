"""litgpt's fused query, key and value, proven row by row.

The merge lists the rows of a block. The proof finds the block of each row, without shared code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _formula(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return the unscaled update in `rows`, each from its own block's factors."""
    stacked = _stacked(delta, rows)
    update = factors["B"].new_zeros(len(rows), factors["A"].shape[1])
    for block, down, up, first in _enabled(delta, factors):
        of_block = (stacked >= first) & (stacked < first + _sizes(delta)[block])
        update[of_block] = up[stacked[of_block] - first] @ down
    return update


def _live(_: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run every block by itself; blocks without an update are zeros."""
    import torch

    parts = [x.new_zeros((*x.shape[:-1], size)) for size in _sizes(delta)]
    for block, down, up, _first in _enabled(delta, factors):
        parts[block] = (x @ down.T) @ up.T
    joined = torch.cat(parts, dim=-1)
    if not _is_interleaved(delta):
        return joined
    return joined.index_select(-1, _stacked(delta, torch.arange(delta.shape[0])))


def _sizes(delta: Delta) -> tuple[int, int, int]:
    """Return how many rows query, key and value have."""
    n_head, groups = delta.heads
    size = delta.shape[0] // (n_head + 2 * groups)
    return n_head * size, groups * size, groups * size


def _is_interleaved(delta: Delta) -> bool:
    """Return whether the rows of the blocks are spread over the groups of heads.

    Up to 0.5.4 litgpt does that only if it fills a block without an update with zeros.
    """
    return delta.by_group and not all(delta.enable_lora)


def _stacked(delta: Delta, rows: torch.Tensor) -> torch.Tensor:
    """Return where `rows` would be if query, key and value lay one after the other."""
    if not _is_interleaved(delta):
        return rows
    n_head, groups = delta.heads
    size, per_group = delta.shape[0] // (n_head + 2 * groups), n_head // groups
    head, inside = rows // size, rows % size
    group, slot = head // (per_group + 2), head % (per_group + 2)
    query = group * per_group + slot
    other = n_head + (slot - per_group) * groups + group
    return (query * (slot < per_group) + other * (slot >= per_group)) * size + inside


def _enabled(delta: Delta, factors: Factors) -> list[tuple[int, torch.Tensor, torch.Tensor, int]]:
    """List (block, its rows of A, its rows of B, its first stacked row) of adapted blocks."""
    found, done, used = [], 0, 0
    sizes = _sizes(delta)
    for block in (place for place, on in enumerate(delta.enable_lora) if on):
        down = factors["A"][done * delta.rank : (done + 1) * delta.rank]
        found.append((block, down, factors["B"][used : used + sizes[block]], sum(sizes[:block])))
        done, used = done + 1, used + sizes[block]
    return found


PROOF = ProofOfKind("litgpt_qkv", formula=_formula, is_screened=True, live_output=adds(_live))
