"""The merge itself, by the very torch calls of the reference, so that the bits are the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import read_tensor, torch_dtype
from lora_export.errors import InputError
from lora_export.layers import all_kinds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_export.records import Delta, MergePlan, Step

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block: 1 MB in float32, which stays in a core's cache."""

LEAST_ROWS = 64
"""Below so many rows a product may come out with other bits than the whole matrix's."""


@dataclass(frozen=True, slots=True)
class StepFactors:
    """The factors of a step's updates, read once, in the dtype of their product."""

    step: Step
    factors: Sequence[Mapping[str, torch.Tensor]]
    exact: bool

    def rows(self, base: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """Rows `first` to `stop` of the merged matrix, given the same rows of the base.

        With recipe "auto" and one adapter of weight 1: loralib 0.1.2's `weight.data += delta *
        scaling`, in the dtypes that loralib would use. Else the exact sum `W + sum(w_i * s_i *
        P_i)` in float32 (float64 for a float64 base), rounded once.
        """
        kinds = all_kinds()
        if not self.exact:
            delta, factors = self.step.deltas[0], self.factors[0]
            update = kinds[delta.kind].product(delta, factors, first, stop).mul_(delta.scaling)
            # What an in-place add into half precision does, in one pass less.
            return base.to(update.dtype, copy=True).add_(update).to(base.dtype)
        wide = self.factors[0]["A"].dtype
        update = base.new_zeros(base.shape, dtype=wide)
        for delta, factors in zip(self.step.deltas, self.factors, strict=True):
            product = kinds[delta.kind].product(delta, factors, first, stop)
            update += product * (delta.scaling * delta.weight)
        return (base.to(wide) + update).to(base.dtype)


def is_exact_sum(step: Step, recipe: str) -> bool:
    """Whether the step is a float32 sum rounded once, and not loralib's own in-place add."""
    return recipe == "exact" or len(step.deltas) > 1 or step.deltas[0].weight != 1.0


def read_factors(step: Step, recipe: str) -> StepFactors:
    """Read the factors of every update of `step`.

    A loralib module holds its factors in the weight's dtype, so factors narrower than the weight
    are widened before the product.

    Raises:
        InputError: a factor holds NaN or infinity, or its file is damaged.
    """
    import torch

    stored = torch_dtype(step.source.spec.dtype)
    exact = is_exact_sum(step, recipe)
    wide = torch.promote_types(stored, torch.float32) if exact else stored
    read = [_finite_factors(delta) for delta in step.deltas]
    for factor in (factor for factors in read for factor in factors.values()):
        wide = torch.promote_types(wide, factor.dtype)
    return StepFactors(
        step, [{r: f.to(wide) for r, f in factors.items()} for factors in read], exact
    )


def _finite_factors(delta: Delta) -> dict[str, torch.Tensor]:
    import torch

    factors = {role: read_tensor(ref) for role, ref in delta.factors.items()}
    for role, factor in factors.items():
        if not torch.isfinite(factor).all():
            where = f"{delta.adapter}: {delta.module}.lora_{role}"
            raise InputError("holds NaN or infinity", where=where, hint="did training diverge?")
    return factors


def matrix_of(step: Step) -> tuple[int, int]:
    """(rows, columns) of the matrix in which the step is merged."""
    delta = step.deltas[0]
    return all_kinds()[delta.kind].matrix(delta)


def row_blocks(step: Step) -> list[tuple[int, int]]:
    """The step's rows in blocks of about BLOCK_ELEMENTS; one block where it may not be cut."""
    kinds = all_kinds()
    rows, columns = matrix_of(step)
    same = len({kinds[delta.kind].matrix(delta) for delta in step.deltas}) == 1
    cuttable = same and all(kinds[delta.kind].cuttable(delta) for delta in step.deltas)
    if not cuttable or step.source.strides is not None:
        return [(0, rows)]
    size = max(LEAST_ROWS, BLOCK_ELEMENTS // max(columns, 1))
    count = max(1, rows // size)
    starts = [block * size for block in range(count)] + [rows]
    return list(pairwise(starts))


def memory_needed(plan: MergePlan, jobs: int) -> int:
    """Bytes that a merge in `jobs` threads takes beside the interpreter and torch, roughly.

    A thread holds a block in several dtypes, and the factors of the tensor it is at: as they are
    stored, and in float64 and float32 for the proof. A tensor that cannot be cut is held whole.
    """
    largest = max((_step_memory(step) for step in plan.steps() if step.deltas), default=0)
    return jobs * (8 * 8 * BLOCK_ELEMENTS + largest)


def _step_memory(step: Step) -> int:
    factors = sum(ref.length for delta in step.deltas for ref in delta.factors.values())
    whole = 4 * step.out.nbytes if len(row_blocks(step)) == 1 else 0
    return 4 * factors + whole
