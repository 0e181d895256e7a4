"""litgpt's fused query, key and value: three blocks of unequal size, some of which are adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix
from lora_export.layers.threads import library_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

_BLOCKS = 3


def _readings(shapes: Shapes) -> list[Reading]:
    """List the readings of shapes, which leave open how large the blocks are.

    Which blocks are adapted is clear from the shapes only where all are.
    """
    if not shapes.are_matrices or len(shapes.weight) != 2:
        return []
    (rank_enabled, features_in), (out_enabled, rank) = shapes.a, shapes.b
    enabled, rest = divmod(rank_enabled, rank)
    out, in_ = shapes.weight
    if rest or enabled not in range(1, _BLOCKS + 1) or in_ != features_in or out_enabled > out:
        return []
    every = (True,) * _BLOCKS if enabled == _BLOCKS else None
    return [Reading("litgpt_qkv", rank, enable_lora=every, blocks=(enabled, _BLOCKS))]


def _product(
    delta: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces `LoRAQKVLinear.get_lora_AB` of litgpt before its scaling. 0.5.13 lays the blocks out
    one after the other, 0.4.13 group by group (`delta.by_group`). With all three blocks adapted
    neither version moves a row.
    """
    update = _blocks(delta, factors["A"], factors["B"])
    if not all(delta.enable_lora):
        padded = update.new_zeros((delta.shape[0], update.shape[1]))
        padded[_adapted_rows(delta)] = update
        update = padded
    return update[first:stop]


def _blocks(delta: Delta, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the rows of the enabled blocks, one block after the other.

    Reproduces `LoRAQKVLinear.conv1d`: one grouped conv1d where the blocks are equal, else one for
    each block. It runs with the library's number of threads, on which its last bits depend.
    """
    import torch
    import torch.nn.functional as F

    n_head, groups = delta.heads
    enabled = sum(delta.enable_lora)
    down, up = a.unsqueeze(0), b.unsqueeze(-1)
    with library_threads():
        if n_head == groups:
            return F.conv1d(down, up, groups=enabled).squeeze(0)
        size = delta.shape[0] // (n_head + 2 * groups)
        heads = [
            count
            for count, on in zip((n_head, groups, groups), delta.enable_lora, strict=True)
            if on
        ]
        downs, ups = down.chunk(enabled, dim=1), torch.split(up, [count * size for count in heads])
        parts = [F.conv1d(one, other) for one, other in zip(downs, ups, strict=True)]
    return torch.cat(parts, dim=1).squeeze(0)


def _adapted_rows(delta: Delta) -> list[int]:
    """List the rows of the weight that the enabled blocks go to, in the blocks' order.

    Reproduces `LoRAQKVLinear.lora_ind`.
    """
    out = delta.shape[0]
    n_head, groups = delta.heads
    size = out // (n_head + 2 * groups)
    query, key = n_head * size, groups * size
    if delta.by_group:
        # A group is its query heads, then one key and one value head.
        of_group = n_head // groups + 2
        slots = [(row // size) % of_group for row in range(out)]
        places = [max(slot - (of_group - _BLOCKS), 0) for slot in slots]
    else:
        places = [0] * query + [1] * key + [2] * key
    return [
        row
        for block, on in enumerate(delta.enable_lora)
        if on
        for row, place in enumerate(places)
        if place == block
    ]


def _never(_: Delta) -> bool:
    """Return False: a convolution cut by output channels has other last bits."""
    return False


KIND = LayerKind(
    "litgpt_qkv",
    ("A", "B"),
    _readings,
    weight_matrix,
    _product,
    "A (r*G, in), B (rows of the G adapted ones of query, key and value, r) for a weight (out, in)",
    _never,
    tuners=frozenset({"litgpt"}),
)
