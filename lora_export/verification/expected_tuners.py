"""Recomputation of PEFT's tuners beside LoRA (0.21.2), on its own path; see expected.py.

roundings: how many relative errors of one unit an element of the computed update can hold. A sum of
r products adds r of them to those of its terms, and each product the sum of its factors' (Higham,
section 3.1); the library's own scaling and what it rounds on the way add at most six more.
"""

from __future__ import annotations

import math
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_export.records import Delta

    Factors = Mapping[str, torch.Tensor]

_SPARE = 6
_OWN_ALIGNMENT = 3
"""Dimensions of an undecomposed LoKr w2 of a Conv1d."""


def adalora(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Rows of B diag(E) A, or of its transpose."""
    a, b, e = factors["A"], factors["B"], factors["E"].reshape(-1)
    if delta.fan_in_fan_out:
        return (a[:, rows].T * e) @ b.T
    return (b[rows] * e) @ a


def adalora_roundings(delta: Delta) -> int:
    """A * E, the sum, and the scaling, whose `ranknum + 1e-5` is rounded too."""
    return delta.rank + 4 + _SPARE


def loha(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Rows of the elementwise product of both sides."""
    return _side(factors, "1", rows) * _side(factors, "2", rows)


def _side(factors: Factors, side: str, rows: torch.Tensor) -> torch.Tensor:
    a, b = factors[f"w{side}_a"], factors[f"w{side}_b"]
    if f"t{side}" not in factors:
        return a[rows] @ b
    return _tucker(factors[f"t{side}"], a[:, rows], b).reshape(len(rows), -1)


def _tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over i, j of core[i, j, k, l] a[i, p] b[j, q]; sizes (p, q, k * l)."""
    import torch

    rank = core.shape[0]
    inner = torch.matmul(b.T, core.reshape(rank, rank, -1))
    return torch.matmul(a.T, inner.reshape(rank, -1)).reshape(a.shape[1], b.shape[1], -1)


def loha_roundings(delta: Delta) -> int:
    """Two sums of r terms each, or two of r sums of r terms."""
    depth = 2 if "t1" in delta.factors else 1
    return 2 * depth * delta.rank + _SPARE


def lokr(_: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Rows of the Kronecker product, of which element (a*b, c*d) is w1[a, c] w2[b, d]."""
    import torch

    w1 = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    w2 = _right(factors)
    if "w2" in factors and w2.dim() == _OWN_ALIGNMENT:
        # torch.kron aligns the last dimensions: w1 is (1, a, c) beside (b, d, k).
        whole = torch.einsum("ac,bdk->badck", w1, w2)
        return whole.reshape(w1.shape[0] * w2.shape[0], -1)[rows]
    flat = w2.reshape(w2.shape[0], -1)
    left = w1[torch.div(rows, len(flat), rounding_mode="floor")]
    return torch.einsum("nc,nd->ncd", left, flat[rows % len(flat)]).reshape(len(rows), -1)


def _right(factors: Factors) -> torch.Tensor:
    if "w2" in factors:
        return factors["w2"]
    if "t2" in factors:
        return _tucker(factors["t2"], factors["w2_a"], factors["w2_b"])
    return factors["w2_a"] @ factors["w2_b"]


def lokr_roundings(delta: Delta) -> int:
    """A sum of r terms on the left, and on the right one, or one of sums."""
    left = delta.rank if "w1_a" in delta.factors else 0
    right = delta.rank * (2 if "t2" in delta.factors else 1) if "w2_a" in delta.factors else 0
    return left + right + _SPARE


def vera(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Rows of diag(b) B diag(d) A, both cut to the module, or of its transpose."""
    b, d = factors["lambda_b"], factors["lambda_d"]
    out, in_ = delta.shape[::-1] if delta.fan_in_fan_out else delta.shape
    a, up = factors["A"][:, :in_], factors["B"][:out]
    if delta.fan_in_fan_out:
        return ((a[:, rows].T * d) @ up.T) * b
    return ((up[rows] * d) @ a) * b[rows, None]


def vera_roundings(delta: Delta) -> int:
    """Both sides are scaled before the sum."""
    return delta.rank + _SPARE


def with_projection(delta: Delta, factors: Factors) -> Factors:
    """The factors with the projection that the file leaves out, drawn by numpy's generator.

    Both libraries have the Mersenne Twister of Matsumoto and Nishimura, seeded alike.
    """
    if not delta.projection:
        return factors
    import torch

    from lora_export.checkpoint.tensors import torch_dtype

    sample = factors["lambda_b"]
    drawn = {}
    for role, values in zip("AB", _drawn(delta.projection, delta.rank), strict=True):
        tensor = torch.tensor(values, dtype=torch.float32)
        held = tensor.to(torch_dtype(delta.held)) if delta.held else tensor
        drawn[role] = held.to(sample.dtype)
    return {**factors, **drawn}


@lru_cache(maxsize=2)
def _drawn(projection: tuple[int, ...], rank: int) -> tuple[object, object]:
    import numpy as np

    seed, rows, columns = projection
    generator = np.random.MT19937()
    generator._legacy_seeding(seed & 0xFFFFFFFF)  # noqa: SLF001 - torch's manual_seed is the legacy one
    found = []
    for height, width in ((rank, columns), (rows, rank)):
        bound = np.float32(math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(width)))
        raw = generator.random_raw(height * width) & 0xFFFFFF
        unit = raw.astype(np.float64) / 2.0**24
        values = unit * float(bound - -bound) + float(-bound)
        found.append(values.astype(np.float32).reshape(height, width))
    return found[0], found[1]


def ia3(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(l - 1) times every element of an output, weight or bias; see expected.CHANGES."""
    scales = factors["L"].reshape(-1)
    by_row = scales[None, :] if delta.fan_in_fan_out else scales[rows][:, None]
    return _multiplied(by_row, scaling, base)


def ia3_feedforward(
    delta: Delta, factors: Factors, scaling: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(l - 1) times every element of an input; groups of a convolution have their own inputs."""
    scales = factors["L"].reshape(-1)
    if delta.fan_in_fan_out:
        return _multiplied(scales[rows][:, None], scaling, base)
    width, kernel = delta.shape[1], prod(delta.shape[2:])
    group = rows // (delta.shape[0] * width // len(scales))
    inputs = group[:, None] * width + rows.new_tensor(range(width))
    per_column = scales[inputs][:, :, None].expand(-1, -1, kernel)
    return _multiplied(per_column.reshape(len(rows), -1), scaling, base)


def _multiplied(
    scales: torch.Tensor, scaling: float, base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Neither the product nor the difference is off by more than a unit of |l W|, or of |W|."""
    size = (base * scales).abs() + base.abs()
    return base * (scales - 1.0) * scaling, size * abs(scaling)
