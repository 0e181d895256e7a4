"""MergedLinear: one weight that holds n equal blocks (q, k, v), some of which are adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix
from lora_export.layers.threads import library_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices or len(shapes.weight) != 2:
        return []
    (rank_enabled, features_in), (out_enabled, rank) = shapes.a, shapes.b
    enabled, rest = divmod(rank_enabled, rank)
    if rest or enabled == 0:
        return []
    found = []
    for fan_in_fan_out in (False, True):
        out, in_ = reversed(shapes.weight) if fan_in_fan_out else shapes.weight
        blocks, rest = divmod(out * enabled, out_enabled)
        if in_ == features_in and not rest and out % blocks == 0 and blocks >= enabled:
            every = (True,) * blocks if blocks == enabled else None
            found.append(Reading("merged_linear", rank, fan_in_fan_out, every, (enabled, blocks)))
    return found


def _product(
    delta: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces `merge_AB` with `zero_pad` of loralib 0.1.2, layers.MergedLinear: a grouped conv1d.
    conv1d has other bits than B @ A for some shapes, and also when it is cut by output channels.
    Cut along its length it has the same bits: those are the rows of a weight stored (in, out).
    """
    if delta.fan_in_fan_out:
        return _merge_ab(delta, factors["A"][:, first:stop], factors["B"]).transpose(0, 1)
    return _merge_ab(delta, factors["A"], factors["B"])[first:stop]


def _merge_ab(delta: Delta, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute the update (out, columns of `a`), with rows of zeros for blocks not enabled."""
    import torch.nn.functional as F

    enabled = sum(delta.enable_lora)
    with library_threads():
        blocks = F.conv1d(a.unsqueeze(0), b.unsqueeze(-1), groups=enabled).squeeze(0)
    size = blocks.shape[0] // enabled
    padded = blocks.new_zeros((len(delta.enable_lora), size, blocks.shape[1]))
    padded[list(delta.enable_lora)] = blocks.view(enabled, size, blocks.shape[1])
    return padded.view(-1, blocks.shape[1])


def _cuttable(delta: Delta) -> bool:
    return delta.fan_in_fan_out  # the rows are the conv1d's length then


KIND = LayerKind(
    "merged_linear",
    ("A", "B"),
    _readings,
    weight_matrix,
    _product,
    "A (r*G, in), B (out//n*G, r) for a weight (out, in) of n blocks, G of them enabled",
    _cuttable,
)
