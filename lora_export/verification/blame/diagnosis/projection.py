"""Projects what was added to a base tensor on the updates that should have been added.

The factor of a wrong scaling, of a merge that was repeated, or of an adapter that was left out is
the coefficient of a least-squares fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from lora_export.execution.arithmetic import is_exact_sum
from lora_export.verification.factors import factors_of, needed_for
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_export.records import Delta, Step
    from lora_export.verification.blame.diagnosis.sampled_rows import SampledRows
    from lora_export.verification.formulas.signatures import Factors

_ROUNDED = 1.2
"""How much of the largest rounding error the remainder of a fit may be."""

_SHARE = 2e-3
"""The share of a change that may be left over, beside rounding, if the fit explains it."""

_DEVIATIONS = 4.0
"""Standard deviations of a factor that chance may take."""

_ALIKE = 0.01
"""How far a factor may be from a number that it is taken for, other than 1."""

_ONE = 2e-3
"""How far a factor may be from 1 in a right merge: a scaling that is 0.5 % off is told from it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A change of the base as a sum of updates, each with a factor."""

    factors: tuple[float, ...]
    """One for each update; 1 in a right merge, 0 where the update is not there."""
    cosine: float
    """Of the angle between the change and the sum of the updates; 0 where one of them is zero."""
    change: float
    """The norm of the change."""
    update: float
    """The norm of the sum of the updates."""
    rest: float
    """The norm of what no update explains."""
    noise: float
    """The largest norm of the errors of rounding to the stored dtype."""
    spread: float
    """How far a factor may be off, because the remainder is not zero."""

    @property
    def explains(self) -> bool:
        """Return whether only rounding is left of the change."""
        return self.rest <= _ROUNDED * self.noise + _SHARE * self.change

    def is_near(self, factor: float, value: float) -> bool:
        """Return whether a factor is `value`, as far as it is known."""
        return abs(factor - value) <= max(_ALIKE * max(1.0, abs(value)), self.spread)

    def is_one(self, factor: float) -> bool:
        """Return whether a factor is that of a right merge, as far as it is known."""
        return abs(factor - 1) <= max(_ONE, self.spread)

    @property
    def is_right(self) -> bool:
        """Return whether every update is there once, as far as that is known."""
        return self.spread < 1 / 4 and all(map(self.is_one, self.factors))


def fit(change: torch.Tensor, updates: Sequence[torch.Tensor], sampled: SampledRows) -> Fit:
    """Fit a change by updates; all are float64 matrices of one shape.

    sampled: the rows that the change is of, for the size of their rounding errors.
    """
    import torch

    columns = torch.stack([update.reshape(-1) for update in updates], dim=1)
    flat = change.reshape(-1)
    # The factors of updates that are nearly parallel are not known; the smallest are taken.
    solved = torch.linalg.lstsq(columns, flat[:, None], driver="gelsd").solution[:, 0]
    rest = float((flat - columns @ solved).norm())
    total = columns.sum(dim=1)
    norms = float(flat.norm()), float(total.norm())
    smallest = float(columns.norm(dim=0).min())
    unit = torch.finfo(sampled.stored.dtype).eps / 2 if sampled.stored.is_floating_point() else 0
    noise = unit * max(float(sampled.merged.norm()), float(sampled.base.norm()))
    spread = _DEVIATIONS * rest / (smallest * sqrt(flat.numel())) if smallest else float("inf")
    product = norms[0] * norms[1]
    cosine = float(flat @ total) / product if product else 0.0
    return Fit(tuple(solved.tolist()), cosine, *norms, rest, noise, spread)


def updates_at(step: Step, recipe: str, sampled: SampledRows) -> list[torch.Tensor]:
    """Compute the rows of each update of a step, with scaling and weight, in float64.

    Raises:
        InputError, StorageError: a file of an adapter is damaged or cannot be read.
    """
    exact = is_exact_sum(step, recipe)
    return [update_at(delta, factors_of(delta, exact=exact), sampled) for delta in step.deltas]


def update_at(delta: Delta, factors: Factors, sampled: SampledRows) -> torch.Tensor:
    """Compute the rows of one update, with scaling and weight, in float64."""
    proof, scaling = proof_of(delta), scaling_of(delta)
    if proof.change is not None:
        return proof.change(delta, factors, scaling, sampled.base, sampled.numbers)[0]
    needed, places = needed_for(delta, factors, sampled.numbers)
    return proof.update(delta, needed, places) * scaling
