"""The copies of layers under an update: the base's own values, or values that replace them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content, same_first_rows
from lora_export.planning.full_tensors.disputed import disputed
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.findings import Findings
    from lora_export.planning.full_tensors.base_targets import FullTensor
    from lora_export.planning.given import Given
    from lora_export.planning.tensor_changes import TensorChanges
    from lora_export.records import TensorRef

_BASE = "is this the base it was trained on?"


def fit_copies(
    tensors: Sequence[FullTensor], given: Given, changes: TensorChanges, findings: Findings
) -> list[str]:
    """Place the copies of layers under an update; return the names of those equal to the base's."""
    kept = []
    for one in tensors:
        if one.replacement.origin == "base":
            if _fit_copy(one, given, changes, findings):
                kept.append(one.name)
        elif one.replacement.origin == "under" and one.target and one.target in given.stored:
            _fit_under(one, one.target, given, changes, findings)
    return kept


def _where(one: FullTensor) -> str:
    """Return the place of a copy, by its key in the file."""
    return f"{one.ref.file}: {one.ref.spec.name}"


def _fit_copy(one: FullTensor, given: Given, changes: TensorChanges, findings: Findings) -> bool:
    """Return whether the copy is equal to the base's tensor; otherwise place or refuse it.

    A copy with more or fewer rows is placed as a resized table. A copy that equals the base's
    tensor rounded to the copy's dtype is placed, since the trained model computed with it.
    """
    ref, target = one.ref, one.target
    if target is None:
        hint = given.way_out(ref, _BASE)
        findings.unfit.append(
            Problem("the base holds no such tensor", _where(one), hint, cause="fit/full-tensor")
        )
        return False
    base = given.tensor(target)
    sizes, old = ref.spec.shape, base.spec.shape
    alike = len(sizes) == len(old) and sizes[1:] == old[1:]
    floats = {ref.spec.dtype, base.spec.dtype} <= FLOAT_DTYPES
    likeness = same_first_rows(ref, base) if alike and floats else ""
    if not likeness:
        message = f"is a copy {list(sizes)} of another base: in this one {target} is {list(old)}"
        if sizes == old:
            message = f"is a copy of another base: {target} of this one has other values"
        findings.unfit.append(
            Problem(message, _where(one), given.way_out(ref, _BASE), cause="fit/other-base")
        )
        return False
    if sizes == old and likeness == "same":
        return True
    if likeness == "rounded":
        choice = f"{target}: rounded to {ref.spec.dtype} as in the adapter's copy of it"
        findings.choices.append(choice)
    findings.unfit += put_copy(target, ref, _where(one), given, changes)
    return False


def _fit_under(
    one: FullTensor, target: str, given: Given, changes: TensorChanges, findings: Findings
) -> None:
    """Place a trained tensor to which an update of the same adapter is added."""
    ref, base = one.ref, given.stored[target]
    if one.replacement.outside and given.options.trust_file is None:
        findings.unfit.append(disputed(one.replacement, _where(one)))
    elif ref.spec.shape != base.spec.shape or ref.spec.dtype not in FLOAT_DTYPES:
        message = (
            f"is {ref.spec.dtype} {list(ref.spec.shape)}, and the base's {target} is "
            f"{base.spec.dtype} {list(base.spec.shape)}"
        )
        findings.unfit.append(Problem(message, _where(one), _BASE, cause="fit/full-tensor"))
    else:
        findings.unfit += put_copy(target, ref, _where(one), given, changes)


def put_copy(
    target: str, ref: TensorRef, where: str, given: Given, changes: TensorChanges
) -> Sequence[Problem]:
    """Enter a copy under every stored name of a tied tensor; return a problem if copies differ."""
    stored = given.stored_name(target)
    problems: list[Problem] = []
    for name in given.tied_to(stored) or (stored,):
        if name in given.stored:
            problems += put(changes.copies, name, ref, where)
    return problems


def put(table: dict[str, TensorRef], name: str, ref: TensorRef, where: str) -> Sequence[Problem]:
    """Enter `ref` under `name`; return a problem if another adapter has other values for it."""
    other = table.setdefault(name, ref)
    if other is not ref and not same_content(other, ref):
        message = f"{name} is replaced by {other.file} as well, with other values"
        return [
            Problem(message, where, "leave one out with --allow-unmatched", cause="fit/two-values")
        ]
    return []
