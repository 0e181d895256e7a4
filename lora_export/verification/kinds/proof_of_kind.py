"""The parts of a proof of a layer kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from lora_export.records import Delta
    from lora_export.verification.formulas.signatures import (
        ChangeFormula,
        Factors,
        Formula,
        LiveOutput,
        LiveParameter,
        PartOfFactors,
        Sides,
    )


def as_in_file(_: Delta, factors: Factors) -> Factors:
    """Return the factors of the file, which are all that there are."""
    return factors


def one_product(delta: Delta) -> int:
    """Count the roundings of a product of A and B: two for each of r terms, four more after it."""
    return 2 * delta.rank + 4


@dataclass(frozen=True, slots=True)
class ProofOfKind:
    """How the update of one layer kind is recomputed, and how it works in the unmerged model.

    A kind has a formula or a change, and a live output or a live parameter.
    """

    name: str
    """The name of the layer kind."""
    formula: Formula | None = None
    """The unscaled update, in the factors' dtype; None where it depends on the weight.

    Of the factors' absolute values it gives the magnitude that the rounding error is a share of.
    """
    sides: Sides | None = None
    """The two matrices whose product the formula is; None where it is no single product."""
    change: ChangeFormula | None = None
    """Takes the place of `formula` where the update depends on the weight.

    Its magnitude, times the share of weights.rounding.update_error, bounds the error of the
    computed update.
    """
    tangent: ChangeFormula | None = None
    """Computes the derivative of a change by its scaling, and the magnitude of errors along it.

    A kind needs it if the change is not proportional to the scaling, or if most of its errors go up
    or down by chance.
    """
    roundings: Callable[[Delta], int] = one_product
    """Counts the relative errors of one unit that an element of the computed update can have."""
    complete: Callable[[Delta, Factors], Factors] = as_in_file
    """Adds the factors that the file leaves out because the library draws them from a seed."""
    part_of_factors: PartOfFactors | None = None
    """Cuts the factors to what some rows need.

    A kind needs it if a factor may be as long as a table, half a million rows and more. Such a
    factor is not copied whole for each block of rows.
    """
    is_screened: bool = False
    """Whether half-precision weights are screened in float32.

    The update must be linear in A and in B.
    """
    live_output: LiveOutput | None = None
    """Computes the unmerged module's output from its input and its own output."""
    live_parameter: LiveParameter | None = None
    """Attaches the update to a parameter that the module's forward reads directly."""

    def update(self, delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
        """Evaluate `formula`.

        Args:
            delta: the update.
            factors: its factors, all of one dtype.
            rows: int64 numbers of rows of the weight's matrix.

        Returns:
            these rows of the unscaled update, in the factors' dtype.

        Raises:
            TypeError: the kind has a change instead.
        """
        if self.formula is None:
            raise TypeError(f"{self.name} has no update apart from the weight")
        return self.formula(delta, factors, rows)
