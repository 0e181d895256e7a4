"""Reads the factors of an update for its proof: rounded as the library has them, and completed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def factors_of(delta: Delta, *, exact: bool, narrow: bool = False) -> Factors:
    """Read all factors of an update in float64, by role.

    They are first rounded to the dtype in which the library loads them.

    Args:
        delta: the update.
        exact: keep the values of the file, without that rounding.
        narrow: keep factors that may be as long as a table in float32, unless the file has them in
            float64: float32 has all their values then.

    Raises:
        InputError: a file is damaged.
        StorageError: a file cannot be read.
    """
    import torch

    from lora_export.checkpoint.tensors import read_tensor, torch_dtype

    read = {role: read_tensor(ref) for role, ref in delta.factors.items()}
    loaded = delta.held if delta.held and not delta.projection else delta.loaded
    if loaded and not exact:
        read = {role: factor.to(torch_dtype(loaded)) for role, factor in read.items()}
    proof = proof_of(delta)
    if narrow and proof.part_of_factors is not None:
        return {r: f.to(torch.promote_types(f.dtype, torch.float32)) for r, f in read.items()}
    return proof.complete(delta, {role: factor.double() for role, factor in read.items()})


def needed_for(delta: Delta, factors: Factors, rows: torch.Tensor) -> tuple[Factors, torch.Tensor]:
    """Return the part of the factors that a formula needs for these rows, in float64.

    rows: int64 numbers of rows of the update.

    Returns:
        the part, and the numbers of the rows in the update of that part alone.
    """
    import torch

    part = proof_of(delta).part_of_factors
    if part is None:
        return factors, rows
    few = part(delta, factors, rows)
    return {role: factor.double() for role, factor in few.items()}, torch.arange(len(rows))


def changes_nothing(delta: Delta) -> bool:
    """Return whether the update is a product with a factor of zeros, as of an untrained layer."""
    from lora_export.checkpoint.tensors import read_tensor

    is_product = proof_of(delta).formula is not None
    return is_product and any(not read_tensor(ref).any() for ref in delta.factors.values())
