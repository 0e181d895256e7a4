"""Names the mistakes of a merge that failed, for a report: the one that explains most first.

Nothing here decides whether a check passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_export.verification.blame.diagnosis.module_causes import find_cause
from lora_export.verification.blame.diagnosis.plain_causes import find_plain_cause, tables_of
from lora_export.verification.blame.diagnosis.tensor_names import pair
from lora_export.verification.blame.diagnosis.wording import (
    agreeing,
    module_findings,
    plain_findings,
    shared_findings,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from lora_export.records import Finding, MergePlan, Step, TensorRef
    from lora_export.verification.blame.diagnosis.module_causes import ModuleCause
    from lora_export.verification.blame.diagnosis.plain_causes import PlainCause

_NEIGHBOURS = 16
"""Other modules whose update is tried in the place of a module's own."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What explains a failed proof by weights."""

    findings: tuple[Finding, ...] = ()
    """The one that explains most first."""
    modules: tuple[dict[str, Any], ...] = ()
    """For each wrong module: its name, the factor of the update, its cosine, what was done."""


def diagnose(
    plan: MergePlan, written: Mapping[str, TensorRef], wrong: Collection[str] | None
) -> Diagnosis:
    """Find the mistakes of a merge whose proof by weights failed.

    A sample of each wrong tensor is read, so the memory is bounded.

    Args:
        plan: what should have been merged.
        written: the tensors of the result, by name.
        wrong: the tensors that differ from the plan; None where names, dtypes or shapes kept them
            from being compared.

    Raises:
        InputError, StorageError: a file is damaged or cannot be read.
    """
    paired = pair(plan, written)
    steps = [step for step in plan.steps() if step.out.name in paired.refs]
    adapted = [step for step in steps if step.deltas]
    plain = [step for step in steps if not step.deltas]
    seen = list(_modules(plan, adapted, paired.refs, wrong))
    modules = [cause for cause in seen if cause.code or wrong is not None]
    others = list(_plain(plan, plain, paired.refs, wrong))
    of_plain = plain_findings(others, len(plain))
    is_other_base = any(finding.code == "other-base" for finding in of_plain)
    found = module_findings(modules, len(adapted), is_other_base=is_other_base)
    shared = shared_findings(modules, others, len(steps))
    order = (*shared, *((*of_plain, *found) if is_other_base else (*found, *of_plain)))
    codes = {name: finding.code for finding in found for name in finding.names}
    rows = tuple(_row(cause, codes) for cause in modules)
    if not order and all(cause.is_rounded_merge for cause in seen):
        return Diagnosis(tuple(map(_only_stored, paired.findings)), rows)
    return Diagnosis(tuple(sorted((*paired.findings, *order), key=_rank)), rows)


def _only_stored(finding: Finding) -> Finding:
    """Add what to do where only the dtype is another one."""
    if finding.code != "other-dtype":
        return finding
    message = f"{finding.message}; the values are those of the merge, rounded (see --dtype)"
    return replace(finding, message=message)


def _rank(finding: Finding) -> int:
    """Return the place of a finding: what explains the others stands first."""
    first = ("factors-left", "renamed", "quantised")
    last = ("other-dtype", "tensors-added", "tensors-missing", "resized")
    if finding.code in first:
        return first.index(finding.code)
    return len(first) + (finding.code in last)


def _modules(
    plan: MergePlan,
    steps: Sequence[Step],
    refs: Mapping[str, TensorRef],
    wrong: Collection[str] | None,
) -> Iterator[ModuleCause]:
    for step in steps:
        name = step.out.name
        if wrong is None or name in wrong:
            yield find_cause(step, plan.recipe, refs[name], _neighbours(step, steps))


def _neighbours(step: Step, steps: Sequence[Step]) -> list[Step]:
    """Return adapted tensors whose names differ from this one's in one component."""
    own = step.out.name.split(".")
    near = []
    for other in steps:
        parts = other.out.name.split(".")
        same_length = len(parts) == len(own) and other.out.shape == step.out.shape
        if same_length and sum(a != b for a, b in zip(own, parts, strict=True)) == 1:
            near.append(other)
    place = steps.index(step)
    return sorted(near, key=lambda other: abs(steps.index(other) - place))[:_NEIGHBOURS]


def _plain(
    plan: MergePlan,
    steps: Sequence[Step],
    refs: Mapping[str, TensorRef],
    wrong: Collection[str] | None,
) -> Iterator[PlainCause]:
    base, tables = plan.base.tensors(), tables_of(refs)
    for step in steps:
        name = step.out.name
        if wrong is None or name in wrong:
            cause = find_plain_cause(step, refs[name], base=base.get(name), tables=tables)
            if cause.code or wrong is not None:
                yield cause


def _row(cause: ModuleCause, codes: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of the fact "modules".

    codes: those of the findings by module; a finding knows a closer cause of a factor.
    """
    # Adding zero turns -0.0 into 0.0.
    factors = [round(factor, 6) + 0.0 for factor in cause.fit.factors] if cause.fit else []
    return {
        "module": cause.name,
        "factors": factors,
        "cosine": round(cause.fit.cosine, 6) + 0.0 if cause.fit else None,
        "code": codes.get(cause.name, cause.code),
        "what": agreeing(cause.words, 1),
    }
