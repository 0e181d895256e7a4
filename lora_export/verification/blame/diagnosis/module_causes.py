"""Names what is wrong with one adapted tensor, by a sample of its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.verification.blame.diagnosis.narrow_dtypes import (
    dtype_of_update,
    narrower_dtype,
    quantisation,
)
from lora_export.verification.blame.diagnosis.other_directions import (
    find_direction,
    rank_of_change,
    rows_without,
)
from lora_export.verification.blame.diagnosis.projection import fit, updates_at
from lora_export.verification.blame.diagnosis.rounded_before import rounded_before, share_near
from lora_export.verification.blame.diagnosis.sampled_rows import blank_words, sample_step
from lora_export.verification.blame.diagnosis.scaling_causes import Wrong, part_words
from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_export.records import Step, TensorRef
    from lora_export.verification.blame.diagnosis.projection import Fit
    from lora_export.verification.blame.diagnosis.sampled_rows import SampledRows


_FEW = 0.01
"""The largest share of the elements of a tensor that is a few."""

_FEW_ROWS = 1 / 8
"""The largest share of the rows of a tensor that is a few."""

_OF_UPDATE = 2e-3
"""The share of an element's update that it may be off, beside rounding."""


@dataclass(frozen=True, slots=True)
class ModuleCause:
    """What is wrong with one adapted tensor."""

    tensor: str
    """The tensor's name."""
    code: str
    """The kind of the mistake; "" where the sample is right."""
    words: str
    """What was done, as the end of a sentence whose subject is the module."""
    fit: Fit | None = None
    """None where the change was not projected."""
    wrong: tuple[Wrong, ...] = ()
    """The updates that are there with a factor that is not 1."""
    is_rounded_merge: bool = False
    """Whether every sampled element is that of the merge, rounded to the stored dtype."""

    @property
    def name(self) -> str:
        """Return the name by which the tensor is reported."""
        return self.tensor.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a sample of one adapted tensor shows."""

    step: Step
    """How the tensor should have been made."""
    recipe: str
    """The plan's recipe."""
    sampled: SampledRows
    updates: Sequence[torch.Tensor]
    """The rows of each update, in float64."""
    fit: Fit
    """The change of the base as a sum of the updates."""
    others: Sequence[Step]
    """Further adapted tensors, whose updates may have been mistaken for this one's."""

    @property
    def update(self) -> torch.Tensor:
        """Return the sum of the updates."""
        return sum(self.updates[1:], start=self.updates[0])

    def cause(self, code: str, words: str, wrong: Sequence[Wrong] = ()) -> ModuleCause:
        """Return the cause with the fit of this tensor."""
        return ModuleCause(self.step.out.name, code, words, self.fit, tuple(wrong))


def find_cause(
    step: Step, recipe: str, stored: TensorRef, others: Sequence[Step] = ()
) -> ModuleCause:
    """Find what is wrong with an adapted tensor.

    Args:
        step: how it should have been made.
        recipe: the plan's recipe.
        stored: the tensor in the result, with as many elements.
        others: further adapted tensors, whose updates may have been mistaken for this one's.

    Raises:
        InputError, StorageError: a file is damaged or cannot be read.
    """
    sampled = sample_step(step, stored)
    if not sampled.stored.is_floating_point():
        return ModuleCause(step.out.name, "", "")  # the dtype is a finding of its own
    if blank := blank_words(sampled):
        return ModuleCause(step.out.name, *blank)
    updates = updates_at(step, recipe, sampled)
    found = fit(sampled.change, updates, sampled)
    seen = Evidence(step, recipe, sampled, updates, found, others)
    if sampled.is_base and found.update:
        return _not_merged(seen)
    tests = _OF_ALONG if found.explains else _OF_ASIDE
    right = replace(seen.cause("", ""), is_rounded_merge=_is_rounded_merge(seen))
    return next((cause for test in tests if (cause := test(seen))), right)


def _is_rounded_merge(seen: Evidence) -> bool:
    return share_near(seen.sampled, seen.sampled.base + seen.update) == 1


def _not_merged(seen: Evidence) -> ModuleCause:
    kinds = {delta.kind for delta in seen.step.deltas}
    if kinds == {"token_rows"}:
        return seen.cause("token-rows-not-written", "lack the trained token rows")
    if kinds == {"lora_bias"}:
        return seen.cause("bias-not-added", "lack the bias of lora_B")
    return seen.cause("not-merged", "were not merged")


def _of_factors(seen: Evidence) -> ModuleCause | None:
    """Name updates that are there with another factor than 1, such as 0 or 2."""
    pairs = zip(seen.step.deltas, seen.fit.factors, strict=True)
    wrong = [Wrong(delta, factor) for delta, factor in pairs if not seen.fit.is_one(factor)]
    if not wrong:
        return None
    if len(seen.step.deltas) == 1:
        factor = wrong[0].factor
        return seen.cause("wrong-factor", f"hold {part_words(factor, factor)}", wrong)
    first, which = wrong[0], adapter_name(wrong[0].delta.adapter)
    if all(seen.fit.is_near(factor, 0) for factor in seen.fit.factors):
        return seen.cause("not-merged", "were not merged")
    if seen.fit.is_near(first.factor, 0):
        return seen.cause("adapter-left-out", f"lack the adapter {which}")
    if seen.fit.is_near(first.factor, 2):
        return seen.cause("adapter-twice", f"hold the adapter {which} twice")
    return seen.cause(
        "adapter-factor", f"hold {part_words(first.factor, first.factor, f'the adapter {which}')}"
    )


def adapter_name(path: str) -> str:
    """Return the name by which an adapter is reported: of its folder, where PEFT saved it."""
    file = Path(path)
    return file.parent.name if file.stem == "adapter_model" else file.name


def _of_rounded_base(seen: Evidence) -> ModuleCause | None:
    dtype = rounded_before(seen.step, seen.recipe, seen.sampled, seen.update)
    words = f"were merged into a base that was rounded to {dtype} before"
    return seen.cause("rounded-before", words) if dtype else None


def _of_stored_dtype(seen: Evidence) -> ModuleCause | None:
    dtype = narrower_dtype(seen.sampled)
    words = f"were rounded to {dtype} before they were stored"
    return seen.cause("rounded-narrower", words) if dtype else None


def _of_update_dtype(seen: Evidence) -> ModuleCause | None:
    dtype = dtype_of_update(seen.sampled, seen.update, seen.fit) if seen.fit.is_right else ""
    words = f"were merged with an update that was computed in {dtype}"
    return seen.cause("update-rounded", words) if dtype else None


def _of_elements(seen: Evidence) -> ModuleCause | None:
    """Name a merge that is right but for a few elements, or a few rows."""
    update = seen.update
    left = (seen.sampled.change - update).abs_()
    far = left > 4 * seen.sampled.noise + _OF_UPDATE * update.abs()
    if 0 < float(far.double().mean()) < _FEW:
        return seen.cause("single-elements", "differ from the merge in a few elements")
    rows = far.any(dim=1)
    if 0 < float(rows.double().mean()) < _FEW_ROWS:
        first = int(seen.sampled.numbers[rows][0])
        return seen.cause("single-rows", f"differ from the merge in a few rows, such as {first}")
    return None


def _of_rows(seen: Evidence) -> ModuleCause | None:
    lacking = rows_without(seen.sampled, seen.update)
    if lacking is None:
        return None
    words = f"lack the update in some of their rows, such as row {int(lacking[0])}"
    return seen.cause("part-not-merged", words)


def _of_other_direction(seen: Evidence) -> ModuleCause | None:
    found = find_direction(seen.step, seen.recipe, seen.sampled, seen.others)
    return seen.cause(found.code, f"were merged {found.words}") if found else None


def _of_quantised_base(seen: Evidence) -> ModuleCause | None:
    merged, base, noise = seen.sampled.merged, seen.sampled.base, seen.sampled.noise
    bits = quantisation(merged - seen.update, base, noise) or quantisation(merged, base, noise)
    words = f"come from a base of {bits} precision, dequantised"
    return seen.cause("quantised-base", words) if bits else None


def _of_more(seen: Evidence) -> ModuleCause | None:
    """Name what was added beside the whole update.

    An update that depends on the weight is itself partly along any other weight.
    """
    depends = any(proof_of(delta).change is not None for delta in seen.step.deltas)
    if depends or not seen.fit.is_right:
        return None
    if rank := rank_of_change(seen.sampled.change - seen.update, seen.fit.noise):
        return seen.cause("second-adapter", f"hold the update and another change of rank {rank}")
    return seen.cause("other-base-under", "hold the update, on another base weight")


def _of_foreign(seen: Evidence) -> ModuleCause:
    """Name a change in which the update is not."""
    if rank := rank_of_change(seen.sampled.change, seen.fit.noise):
        words = f"hold a change of rank {rank} that is not this adapter's"
        return seen.cause("other-adapter", words)
    return seen.cause("other-change", "were changed by something else")


_OF_ALONG = (_of_rounded_base, _of_factors, _of_stored_dtype, _of_update_dtype, _of_elements)
"""Tests of a change that is a sum of the updates; none finds anything in a right sample."""

_OF_ASIDE = (
    _of_rounded_base,
    _of_stored_dtype,
    _of_elements,
    _of_rows,
    _of_other_direction,
    _of_quantised_base,
    _of_update_dtype,
    _of_more,
    _of_foreign,
)
"""Tests of any other change, from the closest description on."""
