"""VeRA: one random A and B for all modules, cut to each module, between two learned vectors."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lora_export.verification.formulas.live_output import adds
from lora_export.verification.formulas.unit_roundoff import SPARE
from lora_export.verification.kinds.proof_of_kind import ProofOfKind

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def _formula(delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of diag(b) B diag(d) A, both cut to the module, or of its transpose."""
    b, d = factors["lambda_b"], factors["lambda_d"]
    out, in_ = delta.shape[::-1] if delta.fan_in_fan_out else delta.shape
    a, up = factors["A"][:, :in_], factors["B"][:out]
    if delta.fan_in_fan_out:
        return ((a[:, rows].T * d) @ up.T) * b
    return ((up[rows] * d) @ a) * b[rows, None]


def _roundings(delta: Delta) -> int:
    """Count the sum of r terms; SPARE contains the products with d and b."""
    return delta.rank + SPARE


def _with_projection(delta: Delta, factors: Factors) -> Factors:
    """Add the projection that the file leaves out, drawn by numpy's generator.

    PEFT draws it with torch's. Both are the Mersenne Twister of Matsumoto and Nishimura, with the
    same seeding.
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
    """Draw A and B of the projection (seed, rows, columns), in float32.

    PEFT 0.21.2, tuners.vera.model._kaiming_init, on torch's CPU generator: 24 bits a number, and
    the same order of roundings.
    """
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


def _live(_: Any, x: Any, factors: Factors, delta: Delta) -> torch.Tensor:
    """Run the forward of PEFT 0.21.2, tuners.vera.layer, Linear."""
    import torch.nn.functional as F

    out, in_ = delta.shape[::-1] if delta.fan_in_fan_out else delta.shape
    inner = factors["lambda_d"] * F.linear(x, factors["A"][:, :in_])
    return factors["lambda_b"] * F.linear(inner, factors["B"][:out])


PROOF = ProofOfKind(
    "vera",
    formula=_formula,
    roundings=_roundings,
    complete=_with_projection,
    live_output=adds(_live),
)
