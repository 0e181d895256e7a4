"""Updates that change nothing: of a layer that training never called, or of a damaged adapter.

A layer's first factor to be multiplied by is drawn, the other is zero until training changes it. A
layer whose forward its parent passes over (Mamba's dt_proj, which is read for its weight) keeps
its zeros in every adapter; its update is exactly zero, and the weight stays the base's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import is_zero
from lora_export.layers import all_kinds
from lora_export.records import Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.findings import Findings
    from lora_export.records import Adapter, Delta, Update

_HINT = "an untrained or wrongly saved adapter? --allow-noop accepts it"


@dataclass(frozen=True, slots=True)
class Idle:
    """An update that changes nothing."""

    #: Its module, with the adapter, for messages.
    where: str
    #: What is zero about it, in words.
    reason: str


def zero_effect(update: Update, delta: Delta, where: str, findings: Findings) -> Idle | None:
    """Find a product's zero factor; refuse one that no training leaves behind.

    What depends on the weight may change it with zeros too, and is passed over.
    """
    kind = all_kinds()[delta.kind]
    if kind.product is None:
        return None
    idle = None
    if zero := [role for role, ref in update.factors.items() if is_zero(ref)]:
        found = Idle(where, f"{_stem(update, zero[0])} is all zero")
        if (zero == ["A"] and kind.zero_at_start != "A") or {"A", "B"} <= {*zero}:
            # One of both is drawn, and training does not make it zero.
            findings.unfit.append(_without_effect(found))
        else:
            idle = found
    if delta.scaling == 0:
        message = f"the scaling is 0 (alpha = {delta.alpha:g}), so this update changes nothing"
        findings.unfit.append(Problem(message, where, "--allow-noop accepts it"))
    return idle


def judge_idle(adapter: Adapter, idle: Sequence[Idle], count: int, findings: Findings) -> None:
    """Refuse an adapter all of whose updates are idle; warn of those of one that has others.

    count: of all its updates.
    """
    if idle and len(idle) == count:
        findings.unfit += [_without_effect(one) for one in idle]
    elif idle:
        names = first_names([one.where.removeprefix(f"{adapter.path}: ") for one in idle])
        modules = f"{counted(len(idle), 'module')} of {count}"
        meaning = "training did not change them, and their weights stay the base's"
        findings.warnings.append(
            f"{adapter.path.name}: {idle[0].reason} in {modules} ({names}): {meaning}"
        )


def _without_effect(idle: Idle) -> Problem:
    return Problem(f"{idle.reason}, so this update changes nothing", idle.where, _HINT)


def _stem(update: Update, role: str) -> str:
    """Return the name of a factor as its key ends in it."""
    if update.terms is None:
        return f"lora_{role}"
    name = update.factors[role].spec.name.removesuffix(".weight").removesuffix(".default")
    return name.rpartition(".")[2]
