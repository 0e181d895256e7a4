"""The account of the adapters' full tensors: each is in the result, or the merge is refused.

It is kept apart from the decisions on what is written, and looks at nothing but their outcome: the
proof builds the unmerged model of the same plan, and would not see a tensor that the plan has lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_export.planning.draft import Draft
    from lora_export.records import Step, TensorRef


@dataclass(frozen=True, slots=True)
class Promise:
    """What a full tensor of an adapter stands for: the value of `name`.

    others: names that stand for it where nothing is written under its own, or anywhere else where
    it is the value of what several names share.
    """

    where: str
    ref: TensorRef
    name: str
    others: tuple[str, ...]
    is_own: bool


def refuse_lost(draft: Draft, steps: Iterable[Step]) -> None:
    """Refuse a plan that makes nothing of a full tensor, or has another value in its place."""
    written = {step.out.name: step for step in steps}
    for promise in draft.promised:
        if not any(same_content(step.source, promise.ref) for step in _places(promise, written)):
            message = f"the result would hold another {promise.name} than the adapter"
            hint = "please report this; --allow-unmatched leaves the tensor out"
            draft.unfit.append(Problem(message, promise.where, hint))


def _places(promise: Promise, written: Mapping[str, Step]) -> list[Step]:
    """Where the value may be found."""
    if promise.name in written and promise.is_own:
        return [written[promise.name]]
    return [written[name] for name in (promise.name, *promise.others) if name in written]
