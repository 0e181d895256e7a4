"""The factors of an update as its proof needs them: read, rounded and completed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import Factors


def factors_of(delta: Delta, *, exact: bool, narrow: bool = False) -> Factors:
    """Read all factors of an update in float64, rounded as the library holds them.

    Args:
        delta: the update.
        exact: the factors keep the values of the file.
        narrow: factors that may be as long as a table stay in float32, where that holds their
            values as well.
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
    """Return what a formula needs of the factors for these rows, and the rows' numbers in it.

    The factors are in float64.
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
