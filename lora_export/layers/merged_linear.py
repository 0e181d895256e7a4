"""MergedLinear: one weight that holds n equal blocks (q, k, v), some of which are adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    if len(shapes.weight) != 2:  # noqa: PLR2004
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


def _product(delta: Delta, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`merge_AB` with `zero_pad` of loralib 0.1.2, layers.MergedLinear: a grouped conv1d."""
    import torch.nn.functional as F  # noqa: N812

    enabled = sum(delta.enable_lora)
    blocks = F.conv1d(
        factors["A"].unsqueeze(0), factors["B"].unsqueeze(-1), groups=enabled
    ).squeeze(0)
    out = delta.shape[1] if delta.fan_in_fan_out else delta.shape[0]
    padded = blocks.new_zeros(
        (len(delta.enable_lora), out // len(delta.enable_lora), blocks.shape[1])
    )
    padded[list(delta.enable_lora)] = blocks.view(enabled, -1, blocks.shape[1])
    product = padded.view(out, -1)
    return product.transpose(0, 1) if delta.fan_in_fan_out else product


KIND = LayerKind(
    "merged_linear",
    ("A", "B"),
    _readings,
    _product,
    "A (r*G, in), B (out//n*G, r) for a weight (out, in) of n blocks, G of them enabled",
)
