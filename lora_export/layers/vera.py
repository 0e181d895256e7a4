"""VeRA: one random A and B for all modules, cut to each, between two learned vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes, weight_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta


def _readings(shapes: Shapes) -> list[Reading]:
    b, d = shapes.factors["lambda_b"], shapes.factors["lambda_d"]
    if not len(b) == len(d) == 1 or len(shapes.weight) != 2:
        return []
    found = []
    for fan_in_fan_out in (False, True):
        out, in_ = reversed(shapes.weight) if fan_in_fan_out else shapes.weight
        if out == b[0] and _covers(shapes, d[0], out, in_):
            found.append(Reading("vera", d[0], fan_in_fan_out))
    return found


def _covers(shapes: Shapes, rank: int, out: int, in_: int) -> bool:
    """Return whether the shared projection is large enough for the module.

    A file may leave the projection out: PEFT draws it again then.
    """
    if ("A" in shapes.factors) != ("B" in shapes.factors):
        return False
    if "A" not in shapes.factors:
        return True
    if not shapes.are_matrices:
        return False
    return shapes.a[0] == shapes.b[1] == rank and shapes.a[1] >= in_ and shapes.b[0] >= out


def _prepare(delta: Delta, factors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Compute both sides of the product: A and B, cut to the module and scaled by the vectors.

    Reproduces PEFT 0.21.2, tuners.vera.layer, Linear.get_delta_weight.
    """
    drawn = factors if "A" in factors else _drawn(delta, factors["lambda_b"].dtype)
    out, in_ = reversed(delta.shape) if delta.fan_in_fan_out else delta.shape
    a = factors["lambda_d"].unsqueeze(-1) * drawn["A"][:, :in_]
    b = factors["lambda_b"].unsqueeze(-1) * drawn["B"][:out, :]
    return {"A": a, "B": b}


def _drawn(delta: Delta, dtype: torch.dtype) -> Mapping[str, torch.Tensor]:
    """Draw the shared A and B from the seed, in `dtype`.

    Reproduces VeraModel._init_vera_A_vera_B of PEFT 0.21.2, tuners.vera.model: A before B, both
    from one generator. They are rounded to the dtype that PEFT loads them in (`delta.held`).
    """
    import torch

    from lora_export.checkpoint.tensors import torch_dtype

    seed, rows, columns = delta.projection
    generator = torch.Generator(device="cpu").manual_seed(seed)
    sizes = {"A": (delta.rank, columns), "B": (rows, delta.rank)}
    found = {}
    for role, (height, width) in sizes.items():
        # The order of operations is that of PEFT's _kaiming_init: it decides the last bits.
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(width))
        tensor = torch.empty((height, width), dtype=torch.float32)
        tensor.uniform_(-bound, bound, generator=generator)
        found[role] = tensor.to(torch_dtype(delta.held)) if delta.held else tensor
    return {role: tensor.to(dtype) for role, tensor in found.items()}


def _product(
    delta: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the update, unscaled, from what `_prepare` made."""
    if delta.fan_in_fan_out:
        return (factors["B"] @ factors["A"][:, first:stop]).transpose(0, 1)
    return factors["B"][first:stop] @ factors["A"]


KIND = LayerKind(
    "vera",
    ("lambda_b", "lambda_d"),
    _readings,
    weight_matrix,
    _product,
    "lambda_b (out), lambda_d (r) and a shared A (r, at least in), B (at least out, r) for a "
    "weight (out, in)",
    tuners=frozenset({"vera"}),
    twice=frozenset(),
    optional=frozenset({"A", "B"}),
    prepare=_prepare,
)
