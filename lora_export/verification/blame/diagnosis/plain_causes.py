"""Names what is wrong with tensors that no update changes: copies of the base, full tensors.

They show another base, full tensors that were not copied, and a merge that was stored narrower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.verification.blame.diagnosis.narrow_dtypes import narrower_dtype, quantisation
from lora_export.verification.blame.diagnosis.sampled_rows import blank_words, sample_pair
from lora_export.verification.blame.diagnosis.tensor_names import IS_TABLE
from lora_export.verification.formulas.unit_roundoff import UNIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Step, TensorRef
    from lora_export.verification.blame.diagnosis.sampled_rows import SampledRows

_DIFFER = "differ from the base's"


@dataclass(frozen=True, slots=True)
class PlainCause:
    """What is wrong with one tensor without an update."""

    name: str
    code: str
    """The kind of the mistake; "" where the sample is right."""
    words: str
    """What was done, as the end of a sentence whose subject is the tensors."""


def find_plain_cause(
    step: Step,
    stored: TensorRef,
    *,
    base: TensorRef | None,
    tables: Mapping[str, TensorRef],
) -> PlainCause:
    """Find what is wrong with a tensor without updates.

    Args:
        step: how it should have been made.
        stored: the tensor in the result, of the planned shape.
        base: the base's tensor of that name; None where it has none.
        tables: embeddings and heads of the result; see `tables_of`.

    Raises:
        InputError, StorageError: a file ends early or cannot be read.
    """
    name = step.out.name
    if {step.source.spec.dtype, stored.spec.dtype} - UNIT.keys():
        # Another dtype is a finding of its own; the names may differ by a wrapper.
        is_compared = step.source.spec.dtype == stored.spec.dtype
        same = not is_compared or same_content(step.source, stored)
        return PlainCause(name, *(("", "") if same else ("tensor-changed", _DIFFER)))
    sampled = sample_pair(step.source, stored)
    if sampled.is_base:
        return PlainCause(name, "", "")
    is_full = step.action in ("replace", "add")
    if is_full and base and _are_alike(base, stored):
        return _not_copied(name)
    if blank := blank_words(sampled):
        return PlainCause(name, *blank)
    for other, ref in tables.items():
        if name in tables and other != name and _are_alike(ref, stored):
            return PlainCause(name, "tied-wrongly", f"have the values of {other}")
    return _of_values(name, sampled, is_full=is_full)


def _are_alike(one: TensorRef, stored: TensorRef) -> bool:
    return one.spec.shape == stored.spec.shape and sample_pair(one, stored).is_base


def _of_values(name: str, sampled: SampledRows, *, is_full: bool) -> PlainCause:
    if dtype := narrower_dtype(sampled):
        words = f"were rounded to {dtype} before they were stored"
        return PlainCause(name, "rounded-narrower", words)
    if bits := quantisation(sampled.merged, sampled.base, sampled.noise):
        words = f"come from a base of {bits} precision, dequantised"
        return PlainCause(name, "quantised-base", words)
    if is_full:
        return PlainCause(name, "full-tensor-changed", "differ from the adapter's")
    return PlainCause(name, "tensor-changed", _DIFFER)


def _not_copied(name: str) -> PlainCause:
    if name.endswith(".bias"):
        return PlainCause(name, "bias-not-copied", "have the values of the base: not copied")
    return PlainCause(name, "full-tensor-not-copied", "have the values of the base: not copied")


def tables_of(written: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Return the embeddings and heads of a result, by their names."""
    return {name: ref for name, ref in written.items() if IS_TABLE.search(name)}
