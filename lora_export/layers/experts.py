"""LoRA on a parameter itself (PEFT's target_parameters): stacked experts, or one matrix."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lora_export.layers.layer_kind import LayerKind, Reading, Shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

WHOLE_ELEMENTS = 1 << 18
"""An expert of at most this many elements is computed at once: rows alone may have other bits."""

LEAST_ROWS = 64
"""Of a larger expert at least this many rows are computed at once, for the same reason."""


def _readings(shapes: Shapes) -> list[Reading]:
    if not shapes.are_matrices or len(shapes.weight) not in (2, 3):
        return []
    (ranks, features_in), (features_out, ranks_b) = shapes.a, shapes.b
    *stack, rows, columns = shapes.weight
    experts = prod(stack)
    rank, rest = divmod(ranks, experts)
    if ranks != ranks_b or rest or rank == 0:
        return []
    found = []
    if (rows, columns) == (features_out, features_in):
        found.append(Reading("experts", rank))
    # PEFT takes B @ A for a matrix and for a stack of one, and never its transpose.
    if (rows, columns) == (features_in, features_out) and experts > 1:
        found.append(Reading("experts", rank, fan_in_fan_out=True))
    return found


def _matrix(delta: Delta) -> tuple[int, int]:
    """Return (rows, columns) of the update: the rows of all experts, one below the other."""
    *stack, rows, columns = delta.shape
    return prod(stack) * rows, columns


def _is_oriented(_: tuple[int, ...]) -> bool:
    """Return True: a stack is stored (experts, out, in) or (experts, in, out)."""
    return True


def _product(
    delta: Delta, factors: Mapping[str, torch.Tensor], first: int, stop: int
) -> torch.Tensor:
    """Compute rows of the update, unscaled.

    Reproduces PEFT 0.21.2, tuners.lora.layer.ParamWrapper.get_delta_weight:
    `einsum("o r e, e r i -> e o i")`, or "-> e i o" for experts stored (in, out). The einsum is a
    bmm. One expert's product has the same bits in it as in the stack. For one expert PEFT computes
    B @ A.
    """
    import torch

    first, stop = first + delta.start, stop + delta.start
    a, b = factors["A"], factors["B"]
    experts = a.shape[0] // delta.rank
    if experts == 1:
        return b[first:stop] @ a
    a = a.reshape(experts, -1, a.shape[-1])
    b = b.reshape(b.shape[0], -1, experts)
    height = a.shape[-1] if delta.fan_in_fan_out else b.shape[0]
    parts = []
    for expert in range(first // height, -(-stop // height)):
        above = expert * height
        rows = (max(first - above, 0), min(stop - above, height))
        parts.append(_expert(a[expert], b[:, :, expert], rows, turned=delta.fan_in_fan_out))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _expert(
    a: torch.Tensor, b: torch.Tensor, rows: tuple[int, int], *, turned: bool
) -> torch.Tensor:
    """Compute rows of one expert's product, as part of a piece with the bits of the whole."""
    import torch

    first, stop = rows
    height = a.shape[1] if turned else b.shape[0]
    low, high = 0, height
    if a.shape[1] * b.shape[0] > WHOLE_ELEMENTS:
        low = max(0, min(first, height - LEAST_ROWS))
        high = min(height, max(stop, low + LEAST_ROWS))
    if turned:
        product = torch.bmm(b[None], a[None, :, low:high])[0].T
    else:
        product = torch.bmm(b[None, low:high], a[None])[0]
    return product[first - low : stop - low]


KIND = LayerKind(
    "experts",
    ("A", "B"),
    _readings,
    _matrix,
    _product,
    "A (r*experts, in), B (out, r*experts) for a parameter (experts, out, in) or (out, in)",
    tuners=frozenset({"parameter"}),
    twice=frozenset({"peft", "peft-safe"}),
    is_oriented=_is_oriented,
)
