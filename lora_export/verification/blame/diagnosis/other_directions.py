"""Tries what else may have been added to a weight, where its change is not along the update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from math import sqrt
from typing import TYPE_CHECKING

from lora_export.execution.arithmetic import is_exact_sum, matrix_of
from lora_export.verification.blame.diagnosis.projection import fit, update_at, updates_at
from lora_export.verification.factors import factors_of
from lora_export.verification.formulas.scaling import scaling_of
from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from lora_export.records import Delta, Step
    from lora_export.verification.blame.diagnosis.projection import Fit
    from lora_export.verification.blame.diagnosis.sampled_rows import SampledRows
    from lora_export.verification.formulas.signatures import Factors

_WITHOUT_MAGNITUDE = {
    "dora_linear": "linear",
    "dora_conv": "peft_conv",
    "dora_embedding": "embedding",
}
"""The kind that merges the factors of a kind of DoRA without its magnitude."""

_BLOCKS = 3
"""The most blocks of a fused weight of which every order is tried: query, key and value."""

_ALIKE = 0.01
"""How far the part of the update in a row may be from 0, or from 1."""

_SHARE = 2e-3
"""The share of a row's update that may be left over, beside rounding."""


@dataclass(frozen=True, slots=True)
class Direction:
    """A change that a mistake makes in place of the update."""

    code: str
    words: str
    """What was done, as the end of a sentence."""
    fit: Fit


def find_direction(
    step: Step, recipe: str, sampled: SampledRows, others: Sequence[Step]
) -> Direction | None:
    """Return the first mistake that explains the whole change of a tensor; None if none does.

    others: further adapted tensors of the same matrix, whose updates may have been mistaken for
        this one's.

    Raises:
        InputError, StorageError: a file of an adapter is damaged or cannot be read.
    """
    change = sampled.change
    for code, words, updates in _candidates(step, recipe, sampled, others):
        found = fit(change, updates, sampled)
        if found.explains and found.is_right:
            return Direction(code, words, found)
    return None


def _candidates(
    step: Step, recipe: str, sampled: SampledRows, others: Sequence[Step]
) -> Iterator[tuple[str, str, list[torch.Tensor]]]:
    exact = is_exact_sum(step, recipe)
    read = [(delta, factors_of(delta, exact=exact)) for delta in step.deltas]
    rows, columns = matrix_of(step)
    if rows == columns and all(proof_of(delta).sides for delta in step.deltas):
        yield (
            "transposed",
            "with the update transposed",
            [_transposed(delta, factors, sampled) for delta, factors in read],
        )
    if any(delta.kind in _WITHOUT_MAGNITUDE for delta in step.deltas):
        yield (
            "dora-as-lora",
            "as plain LoRA: DoRA's magnitude was ignored",
            [update_at(_without_magnitude(delta), factors, sampled) for delta, factors in read],
        )
    if len(read) == 1 and proof_of(step.deltas[0]).change is not None:
        yield "merged-twice", "twice", [_twice(*read[0], sampled)]
    if len(read) == 1 and 1 < len(step.deltas[0].enable_lora) <= _BLOCKS:
        for updates in _of_other_blocks(*read[0], sampled):
            yield "blocks-swapped", "with its blocks in another order", [updates]
    for other in others:
        name = other.out.name
        if matrix_of(other) == (rows, columns):
            words = f"with the update of {name}"
            yield "other-module", words, updates_at(other, recipe, sampled)


def _transposed(delta: Delta, factors: Factors, sampled: SampledRows) -> torch.Tensor:
    sides = proof_of(delta).sides
    if sides is None:
        raise TypeError(f"{delta.kind} has no sides")
    left, right = sides(delta, factors)
    return right.T[sampled.numbers] @ left.T * scaling_of(delta)


def _of_other_blocks(
    delta: Delta, factors: Factors, sampled: SampledRows
) -> Iterator[torch.Tensor]:
    """Yield the update of a fused weight with its blocks in each other order."""
    import torch

    count, length = len(delta.enable_lora), max(delta.shape)
    along = delta.shape.index(length)
    if length % count or len(set(delta.shape)) == 1:
        return
    places = torch.arange(length).view(count, -1)
    for order in list(permutations(range(count)))[1:]:
        moved = places[list(order)].flatten()
        if along == 1:
            yield update_at(delta, factors, sampled)[:, moved]
        else:
            yield update_at(delta, factors, replace(sampled, numbers=moved[sampled.numbers]))
    if delta.heads:
        yield update_at(replace(delta, by_group=not delta.by_group), factors, sampled)


def _without_magnitude(delta: Delta) -> Delta:
    return replace(delta, kind=_WITHOUT_MAGNITUDE.get(delta.kind, delta.kind))


def _twice(delta: Delta, factors: Factors, sampled: SampledRows) -> torch.Tensor:
    """Return the change of two merges, of an update that depends on the weight."""
    once = update_at(delta, factors, sampled)
    merged = replace(sampled, base=sampled.base + once)
    return once + update_at(delta, factors, merged)


def rank_of_change(values: torch.Tensor, noise: float) -> int:
    """Return the rank of a change beyond its rounding errors; 0 where it is not below half of all.

    Args:
        values: rows of the change, in float64.
        noise: the largest norm of its rounding errors.
    """
    import torch

    rows, columns = values.shape
    found = torch.linalg.svdvals(values)
    # The largest singular value of a matrix of independent errors is about this.
    floor = noise / sqrt(values.numel()) * (sqrt(rows) + sqrt(columns))
    rank = int((found > max(2 * floor, 1e-6 * float(found[0]))).sum())
    return rank if 2 * rank <= min(rows, columns) else 0


def rows_without(sampled: SampledRows, update: torch.Tensor) -> torch.Tensor | None:
    """Return the numbers of the rows that lack the update, where the others hold it once.

    It is None where that does not describe the rows.
    """
    import torch

    change, size = sampled.change, update.square().sum(dim=1)
    some = size > 0
    parts = (change * update).sum(dim=1)[some] / size[some]
    left = change - update * parts.new_zeros(len(some)).masked_scatter(some, parts)[:, None]
    unit = torch.finfo(sampled.stored.dtype).eps
    allowed = unit * torch.maximum(sampled.base.norm(dim=1), sampled.merged.norm(dim=1))
    allowed += _SHARE * size.sqrt()
    lacking, holding = parts.abs() < _ALIKE, (parts - 1).abs() < _ALIKE
    split = bool(lacking.any() and holding.any() and (lacking | holding).all())
    if not split or bool((left.norm(dim=1) > allowed).any()):
        return None
    return sampled.numbers[some][lacking]
