"""AdaLoRA: B @ (A * E), where E holds the singular values that pruning left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, as_matrix, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

_CONV2D = 4


def _readings(shapes: Shapes) -> list[Reading]:
    """List the readings of shapes; their rank is 0.

    The scaling is made of the rank at the start of training. Pruning has changed the shapes since.
    """
    if not shapes.are_matrices:
        return []
    rank = shapes.a[0]
    if shapes.factors["E"] != (rank, 1) or shapes.b[1] != rank:
        return []
    features = (shapes.b[0], shapes.a[1])
    if len(shapes.weight) == _CONV2D:
        fits = as_matrix(shapes.weight) == features
        return [Reading("adalora", 0)] if fits else []
    found = []
    if shapes.weight == features:
        found.append(Reading("adalora", 0))
    if shapes.weight == features[::-1]:
        found.append(Reading("adalora", 0, fan_in_fan_out=True))
    return found


def _prepare(_: Delta, factors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return {"A": factors["A"] * factors["E"], "B": factors["B"]}


def _product(
    delta: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces PEFT 0.21.2, tuners.adalora.layer, SVDLinear.get_delta_weight. SVDConv2d's product
    is the same, reshaped to the kernel.
    """
    if delta.fan_in_fan_out:
        return (factors["B"] @ factors["A"][:, first:stop]).transpose(0, 1)
    return factors["B"][first:stop] @ factors["A"]


def _scale(delta: Delta, update: torch.Tensor) -> torch.Tensor:
    """Scale an update by alpha / rank, in place.

    Reproduces SVDLinear.get_delta_weight, which multiplies first and then divides: alpha / rank in
    one step rounds otherwise. Its `ranknum` is a tensor of one element of the update's dtype.
    """
    import torch

    ranknum = torch.tensor([float(delta.rank)], dtype=update.dtype) + 1e-5
    return update.mul_(delta.alpha).div_(ranknum)


KIND = LayerKind(
    "adalora",
    ("A", "B", "E"),
    _readings,
    weight_matrix,
    _product,
    "A (r, in), B (out, r), E (r, 1) for a weight (out, in) or (out, in, k, k)",
    tuners=frozenset({"adalora"}),
    twice=frozenset(),
    prepare=_prepare,
    scale=_scale,
)
