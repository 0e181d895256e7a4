"""Computes merged weights by the torch calls of the reference, so that the bits are the same.

A matrix that is computed whole is computed with the library's number of threads. With another
number, products with few rows or columns have other last bits. Blocks of LEAST_ROWS or more do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor, torch_dtype
from lora_export.errors import InputError
from lora_export.execution.full_tensors import DIVERGED
from lora_export.layers import all_kinds
from lora_export.layers.threads import library_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_export.layers.layer_kind import Change
    from lora_export.records import Delta, MergePlan, Step

BLOCK_BYTES = 1 << 21
"""Bytes of a block, which is read, merged, written, proven and hashed at once.

A block is small enough to stay in a processor's cache. It is large enough that the calls take much
longer than the threads need to hand the interpreter over between them.
"""

WHOLE_ELEMENTS = 1 << 18
"""From this size on a matrix is cut into at least two blocks, if it may be cut.

A whole matrix would occupy all of torch's own threads while ours wait.
"""

LEAST_ROWS = 64
"""The fewest rows of a block; a product of fewer may have other bits than the whole matrix's."""


@dataclass(frozen=True, slots=True)
class StepFactors:
    """The factors of a step's updates, read once for all blocks."""

    step: Step
    factors: Sequence[Mapping[str, torch.Tensor]]
    """One mapping by role for each of the step's deltas."""
    wide: torch.dtype
    """The dtype of the factors and of their product."""
    exact: bool
    """See is_exact_sum."""

    def rows(self, base: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """Compute rows `first` to `stop` of the merged matrix.

        For one adapter of weight 1 this is the library's own merge: loralib 0.1.2 (every layer's
        train) or PEFT 0.21.2 (every layer's merge). Otherwise, or with recipe "exact", it is the
        sum `W + sum(w_i * (change of i))` in float32 (float64 for a float64 base), rounded once.

        base: the same rows of the base, as a matrix of the step's merge_dtype.

        Returns:
            a matrix of the same shape and dtype.
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
    """Compute `weight.data += delta * scaling` in the library's dtypes and with its roundings."""
    kind = all_kinds()[delta.kind]
    if kind.change is not None:
        return kind.change(delta, factors, base, first, stop).to(base.dtype)
    update = kind.scale(delta, kind.rows(delta, factors, first, stop))
    if delta.recipe in kind.twice:
        update = update.to(base.dtype)
    # The same bits as torch's in-place add into half precision, which widens, adds and rounds.
    return base.to(_wider(base, update), copy=True).add_(update).to(base.dtype)


def _alone(delta: Delta) -> Change | None:
    """Return the change function of a single adapter of weight 1, if its kind has one.

    Its result is the merged weight itself. A difference and a sum would round twice more.
    """
    return all_kinds()[delta.kind].change if delta.weight == 1.0 else None


def _wide_change(
    delta: Delta, factors: Mapping[str, torch.Tensor], wide: torch.Tensor, first: int, stop: int
) -> torch.Tensor:
    """Compute what one adapter alone would add to `wide`, rows of the base, times its weight."""
    kind = all_kinds()[delta.kind]
    if kind.change is not None:
        return (kind.change(delta, factors, wide, first, stop) - wide) * delta.weight
    return kind.rows(delta, factors, first, stop) * (delta.scaling * delta.weight)


def _wider(base: torch.Tensor, update: torch.Tensor) -> torch.dtype:
    import torch

    return torch.promote_types(base.dtype, update.dtype)


def is_exact_sum(step: Step, recipe: str) -> bool:
    """Return whether the step is a float32 sum rounded once, and not the library's own merge."""
    several = len(step.deltas) > 1 and not step.in_turn
    return recipe == "exact" or several or step.deltas[0].weight != 1.0


def read_factors(step: Step, recipe: str) -> StepFactors:
    """Read the factors of every update of `step`.

    A loralib module holds its factors in the weight's dtype, so narrower factors are widened before
    the product. PEFT holds them in float32 beside a half-precision weight, and rounds wider ones.

    recipe: the plan's recipe; "exact" asks for the exact sum.

    Raises:
        InputError: a factor holds NaN or infinity, or its file is damaged.
        StorageError: a file cannot be read.
    """
    import torch

    stored = torch_dtype(step.merge_dtype)
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
    """Read factors as the library loads them, or for an exact sum as they are stored."""
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
            raise InputError(
                "holds NaN or infinity", where=where, hint=DIVERGED, cause="input/not-finite"
            )
    return factors


def matrix_of(step: Step) -> tuple[int, int]:
    """Return (rows, columns) of the matrix in which the step is merged."""
    delta = step.deltas[0]
    return all_kinds()[delta.kind].matrix(delta)


def row_blocks(step: Step) -> list[tuple[int, int]]:
    """Divide the step's rows into blocks (first, stop) of about BLOCK_BYTES.

    The last block takes what is left over. There is one block if the matrix may not be cut.
    """
    rows, columns = matrix_of(step)
    if not is_cuttable(step) or step.source.strides is not None:
        return [(0, rows)]
    size = max(LEAST_ROWS, BLOCK_BYTES * rows // max(_merge_bytes(step), 1))  # rows of BLOCK_BYTES
    if rows * columns >= WHOLE_ELEMENTS:
        size = min(size, max(LEAST_ROWS, rows // 2))
    count = max(1, rows // size)
    starts = [block * size for block in range(count)] + [rows]
    return list(pairwise(starts))


def is_cuttable(step: Step) -> bool:
    """Return whether rows of all the step's updates may be computed apart from the others."""
    kinds = all_kinds()
    same = len({kinds[delta.kind].matrix(delta) for delta in step.deltas}) == 1
    return same and all(kinds[delta.kind].cuttable(delta) for delta in step.deltas)


def memory_needed(plan: MergePlan, jobs: int) -> int:
    """Estimate the bytes that a merge in `jobs` threads takes beside the interpreter and torch.

    A thread holds a block in several dtypes, and blocks that wait for their digest. It also holds
    the factors of its tensor: as they are stored, and in float64 and float32 for the proof. A
    tensor that cannot be cut is held whole. The proof then holds a dozen float64 arrays of its
    size.
    """
    largest = max((_step_memory(step) for step in plan.steps() if step.deltas), default=0)
    return jobs * (32 * BLOCK_BYTES + largest)


def _merge_bytes(step: Step) -> int:
    """Return the bytes of the whole tensor in the dtype in which it is merged."""
    return replace(step.out, dtype=step.merge_dtype).nbytes


def _step_memory(step: Step) -> int:
    factors = sum(ref.length for delta in step.deltas for ref in delta.factors.values())
    rows, columns = matrix_of(step)
    whole = 4 * _merge_bytes(step) if len(row_blocks(step)) == 1 else 0
    proof = 0 if is_cuttable(step) else 12 * 8 * rows * columns
    return 4 * factors + whole + proof
