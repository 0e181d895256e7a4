"""The merge itself, by the very torch calls of the reference, so that the bits are the same.

What is computed whole is computed with the library's number of threads, too: products with few rows
or columns have other last bits with another number. Blocks, of at least LEAST_ROWS, do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor, torch_dtype
from lora_export.errors import InputError
from lora_export.layers import all_kinds
from lora_export.layers.threads import library_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_export.layers.layer_kind import Change
    from lora_export.records import Delta, MergePlan, Step

BLOCK_BYTES = 1 << 21
"""Bytes of a block, which is read, merged, written, proven and hashed at once.

Small enough to stay in a processor's cache. Large enough for the calls to take much longer than it
takes the threads to hand each other the interpreter between them.
"""

WHOLE_ELEMENTS = 1 << 18
"""A matrix of as many is cut, where it may be: what is whole takes all of torch's own threads."""

LEAST_ROWS = 64
"""Below so many rows a product may come out with other bits than the whole matrix's."""


@dataclass(frozen=True, slots=True)
class StepFactors:
    """The factors of a step's updates, read once, in `wide`, the dtype of their product."""

    step: Step
    factors: Sequence[Mapping[str, torch.Tensor]]
    wide: torch.dtype
    exact: bool

    def rows(self, base: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """Rows `first` to `stop` of the merged matrix, given the same rows of the base.

        The library's own merge for one adapter of weight 1, unless recipe "exact" is asked for.
        Else the exact sum `W + sum(w_i * (change of i))` in float32 (float64 for a float64 base),
        rounded once.
        """
        if stop - first == matrix_of(self.step)[0]:
            with library_threads():
                return self._rows(base, first, stop)
        return self._rows(base, first, stop)

    def _rows(self, base: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        if not self.exact:
            for delta, factors in zip(self.step.deltas, self.factors, strict=True):
                base = _by_library(delta, factors, base, first, stop)
            return base
        wide = base.to(self.wide)
        if len(self.step.deltas) == 1 and (alone := _alone(self.step.deltas[0])):
            return alone(self.step.deltas[0], self.factors[0], wide, first, stop).to(base.dtype)
        update = wide.new_zeros(wide.shape)
        for delta, factors in zip(self.step.deltas, self.factors, strict=True):
            update += _wide_change(delta, factors, wide, first, stop)
        return (wide + update).to(base.dtype)


def _by_library(
    delta: Delta, factors: Mapping[str, torch.Tensor], base: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """`weight.data += delta * scaling`, in the library's dtypes and with its roundings.

    Of loralib 0.1.2 (every layer's train) and of PEFT 0.21.2 (every layer's merge).
    """
    kind = all_kinds()[delta.kind]
    if kind.change is not None:
        return kind.change(delta, factors, base, first, stop).to(base.dtype)
    update = kind.scale(delta, kind.rows(delta, factors, first, stop))
    if delta.recipe in kind.twice:
        update = update.to(base.dtype)
    # What an in-place add into half precision does, in one pass less.
    return base.to(_wider(base, update), copy=True).add_(update).to(base.dtype)


def _alone(delta: Delta) -> Change | None:
    """The change of one adapter by itself, which need not take the way through a difference."""
    return all_kinds()[delta.kind].change if delta.weight == 1.0 else None


def _wide_change(
    delta: Delta, factors: Mapping[str, torch.Tensor], wide: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """What one adapter alone would add to `wide`, rows of the base, times its weight."""
    kind = all_kinds()[delta.kind]
    if kind.change is not None:
        return (kind.change(delta, factors, wide, first, stop) - wide) * delta.weight
    return kind.rows(delta, factors, first, stop) * (delta.scaling * delta.weight)


def _wider(base: torch.Tensor, update: torch.Tensor) -> torch.dtype:
    import torch

    return torch.promote_types(base.dtype, update.dtype)


def is_exact_sum(step: Step, recipe: str) -> bool:
    """Whether the step is a float32 sum rounded once, and not the library's own merge."""
    several = len(step.deltas) > 1 and not step.in_turn
    return recipe == "exact" or several or step.deltas[0].weight != 1.0


def read_factors(step: Step, recipe: str) -> StepFactors:
    """Read the factors of every update of `step`.

    A loralib module holds its factors in the weight's dtype, so factors narrower than the weight
    are widened before the product; PEFT holds them in float32 beside a half-precision weight, and
    rounds wider ones to it.

    Raises:
        InputError: a factor holds NaN or infinity, or its file is damaged.
    """
    import torch

    stored = torch_dtype(step.out.dtype)
    exact = is_exact_sum(step, recipe)
    by_loralib = all(delta.recipe == "loralib" for delta in step.deltas)
    wide = stored if by_loralib and not exact else torch.promote_types(stored, torch.float32)
    read = [_finite_factors(delta, exact=exact) for delta in step.deltas]
    for factor in (factor for factors in read for factor in factors.values()):
        wide = torch.promote_types(wide, factor.dtype)
    prepared = []
    for delta, factors in zip(step.deltas, read, strict=True):
        held = {role: factor.to(wide) for role, factor in factors.items()}
        with library_threads():
            prepared.append(all_kinds()[delta.kind].prepare(delta, held))
    return StepFactors(step, prepared, wide, exact)


def _finite_factors(delta: Delta, *, exact: bool) -> dict[str, torch.Tensor]:
    """As the library loads them, or for an exact sum as they are."""
    import torch

    factors = {role: read_tensor(ref) for role, ref in delta.factors.items()}
    loaded = delta.held if delta.held and not delta.projection else delta.loaded
    if loaded and not exact:
        factors = {role: factor.to(torch_dtype(loaded)) for role, factor in factors.items()}
    for role, factor in factors.items():
        if not torch.isfinite(factor).all():
            key = f"{delta.module}.lora_{role}"
            name = key if delta.recipe == "loralib" else delta.factors[role].spec.name
            where = f"{delta.adapter}: {name}"
            raise InputError("holds NaN or infinity", where=where, hint="did training diverge?")
    return factors


def matrix_of(step: Step) -> tuple[int, int]:
    """(rows, columns) of the matrix in which the step is merged."""
    delta = step.deltas[0]
    return all_kinds()[delta.kind].matrix(delta)


def row_blocks(step: Step) -> list[tuple[int, int]]:
    """The step's rows in blocks of BLOCK_BYTES or somewhat more; one where it may not be cut."""
    rows, columns = matrix_of(step)
    if not is_cuttable(step) or step.source.strides is not None:
        return [(0, rows)]
    size = max(LEAST_ROWS, BLOCK_BYTES * rows // max(step.out.nbytes, 1))
    if rows * columns >= WHOLE_ELEMENTS:
        size = min(size, max(LEAST_ROWS, rows // 2))
    count = max(1, rows // size)
    starts = [block * size for block in range(count)] + [rows]
    return list(pairwise(starts))


def is_cuttable(step: Step) -> bool:
    """Whether rows of all the step's updates may be computed apart."""
    kinds = all_kinds()
    same = len({kinds[delta.kind].matrix(delta) for delta in step.deltas}) == 1
    return same and all(kinds[delta.kind].cuttable(delta) for delta in step.deltas)


def memory_needed(plan: MergePlan, jobs: int) -> int:
    """Bytes that a merge in `jobs` threads takes beside the interpreter and torch, roughly.

    A thread holds a block in several dtypes, others that wait for their digest, and the factors
    of the tensor it is at: as they are stored, and in float64 and float32 for the proof. A tensor
    that cannot be cut is held whole, in the proof in a dozen arrays of float64.
    """
    largest = max((_step_memory(step) for step in plan.steps() if step.deltas), default=0)
    return jobs * (32 * BLOCK_BYTES + largest)


def _step_memory(step: Step) -> int:
    factors = sum(ref.length for delta in step.deltas for ref in delta.factors.values())
    rows, columns = matrix_of(step)
    whole = 4 * step.out.nbytes if len(row_blocks(step)) == 1 else 0
    proof = 0 if is_cuttable(step) else 12 * 8 * rows * columns
    return 4 * factors + whole + proof
