"""Updates that change nothing: of a layer that training never called, or of a damaged adapter.

A layer's first factor to be multiplied by is drawn, the other is zero until training changes it. A
layer whose forward its parent passes over (Mamba's dt_proj, which is read for its weight) keeps
its zeros in every adapter; its update is exactly zero, and the weight stays the base's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import is_zero
from lora_export.layers import all_kinds
from lora_export.records import Problem
from lora_export.report.columns import counted, first_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.planning.draft import Draft
    from lora_export.planning.updates.parameter_updates import Settled
    from lora_export.records import Adapter, Delta, Update

_HINT = "an untrained or wrongly saved adapter? --allow-noop accepts it"


def note_no_effect(draft: Draft, adapter: Adapter, update: Update, delta: Delta) -> None:
    """Note a product that has a zero factor as idle; refuse one that no training leaves behind.

    What depends on the weight may change it with zeros too, and is passed over.
    """
    kind = all_kinds()[delta.kind]
    if kind.product is None or draft.options.allow_noop:
        return
    where = f"{adapter.path}: {update.module or '(root module)'}"
    if zero := [role for role, ref in update.factors.items() if is_zero(ref)]:
        told = (where, f"{_stem(update, zero[0])} is all zero")
        if (zero == ["A"] and kind.zero_at_start != "A") or {"A", "B"} <= {*zero}:
            _refuse(draft, *told)  # one of both is drawn, and training does not make it zero
        else:
            draft.idle.setdefault(str(adapter.path), []).append(told)
    if delta.scaling == 0:
        message = f"the scaling is 0 (alpha = {delta.alpha:g}), so this update changes nothing"
        draft.unfit.append(Problem(message, where, "--allow-noop accepts it"))


def judge_idle(draft: Draft, adapter: Adapter, settled: Sequence[Settled]) -> None:
    """Refuse an adapter all of whose updates are idle; of one that has others, they are told."""
    idle = draft.idle.get(str(adapter.path), [])
    if idle and len(idle) == len(settled):
        for where, what in idle:
            _refuse(draft, where, what)
    elif idle:
        names = first_names([where.removeprefix(f"{adapter.path}: ") for where, _ in idle])
        count = f"{counted(len(idle), 'module')} of {len(settled)}"
        meaning = "training did not change them, and their weights stay the base's"
        draft.warnings.append(f"{adapter.path.name}: {idle[0][1]} in {count} ({names}): {meaning}")


def _refuse(draft: Draft, where: str, what: str) -> None:
    draft.unfit.append(Problem(f"{what}, so this update changes nothing", where, _HINT))


def _stem(update: Update, role: str) -> str:
    """The name of a factor as its key ends in it."""
    if update.terms is None:
        return f"lora_{role}"
    name = update.factors[role].spec.name.removesuffix(".weight").removesuffix(".default")
    return name.rpartition(".")[2]
