"""What the proof of every layer kind is made of."""

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
    """Count the roundings of a product of A and B: the sum's r, twice, and the scaling's."""
    return 2 * delta.rank + 4


@dataclass(frozen=True, slots=True)
class ProofOfKind:
    """How the update of one layer kind is recomputed, and how it works in the unmerged model.

    A kind has a formula or a change, and a live output or a live parameter.
    """

    #: The name of the layer kind.
    name: str

    #: The unscaled update in any dtype; None where it depends on the weight. Evaluated on the
    #: factors' absolute values, it gives the magnitude that the rounding error is a share of.
    formula: Formula | None = None

    #: The two matrices whose product the formula is; None where it is no single product.
    sides: Sides | None = None

    #: The update that depends on the weight. Its magnitude, times the share of
    #: weights.rounding.update_error, bounds the error of the computed update.
    change: ChangeFormula | None = None

    #: For a change that is not proportional to its scaling, or whose errors mostly go either way:
    #: what it moves by with the scaling, and the magnitude of the errors along that direction.
    tangent: ChangeFormula | None = None

    #: Relative errors of one unit that an element of the computed update can hold.
    roundings: Callable[[Delta], int] = one_product

    #: The factors of the file, and those which it leaves out and the library makes anew.
    complete: Callable[[Delta, Factors], Factors] = as_in_file

    #: The part of the factors that some rows need. A kind has it where a factor may be as long as
    #: a table, half a million rows and more, and must not be copied whole for each block.
    part_of_factors: PartOfFactors | None = None

    #: The update is linear in A and in B, so that half-precision weights are screened in float32.
    is_screened: bool = False

    #: The output of the unmerged module, where the update works on what the module takes.
    live_output: LiveOutput | None = None

    #: Attaches the update to a parameter, where the module's own forward must see it there.
    live_parameter: LiveParameter | None = None

    def update(self, delta: Delta, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
        """Evaluate `formula`, of a kind that has one.

        Raises:
            TypeError: the kind has a change instead.
        """
        if self.formula is None:
            raise TypeError(f"{self.name} has no update apart from the weight")
        return self.formula(delta, factors, rows)
