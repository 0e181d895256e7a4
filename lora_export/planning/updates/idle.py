"""Updates that change nothing: of a layer that training never called, or of a damaged adapter.

Training starts with one factor drawn at random and the other one zero. A layer whose forward is
never called keeps its zeros. Mamba's dt_proj is one: its parent reads only its weight. Such an
update is exactly zero, and the weight stays the base's.
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
    #: What makes it zero, in words.
    reason: str


def zero_effect(update: Update, delta: Delta, where: str, findings: Findings) -> Idle | None:
    """Return the zero factor of a product; refuse an update that no training leaves so.

    Kinds that are no product of factors are skipped: with zero factors they may change the weight.
    """
    kind = all_kinds()[delta.kind]
    if kind.product is None:
        return None
    idle = None
    if zero := [role for role, ref in update.factors.items() if is_zero(ref)]:
        found = Idle(where, f"{_stem(update, zero[0])} is all zero")
        if (zero == ["A"] and kind.zero_at_start != "A") or {"A", "B"} <= {*zero}:
            # One of the two is drawn at random, and training does not make all of it zero.
            findings.unfit.append(_without_effect(found))
        else:
            idle = found
    if delta.scaling == 0:
        message = f"the scaling is 0 (alpha = {delta.alpha:g}), so this update changes nothing"
        findings.unfit.append(
            Problem(message, where, "--allow-noop accepts it", cause="fit/no-effect")
        )
    return idle


def judge_idle(adapter: Adapter, idle: Sequence[Idle], count: int, findings: Findings) -> None:
    """Refuse an adapter whose updates are all idle; warn where only some of them are.

    count: the number of all its updates.
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
    return Problem(
        f"{idle.reason}, so this update changes nothing", idle.where, _HINT, cause="fit/no-effect"
    )


def _stem(update: Update, role: str) -> str:
    """Return the last part of a factor's name, without `.weight` and `.default`."""
    if update.terms is None:
        return f"lora_{role}"
    name = update.factors[role].spec.name.removesuffix(".weight").removesuffix(".default")
    return name.rpartition(".")[2]
