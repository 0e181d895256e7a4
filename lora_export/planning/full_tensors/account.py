"""The account of the adapters' full tensors: each is in the result, or the merge is refused.

The account reads only the finished steps, and not the decisions behind them. It is needed because
the proof builds the unmerged model from the same plan: a tensor that the plan has lost is missing
there as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lora_export.planning.fitted import Promise
    from lora_export.records import ShardPlan, Step


def lost_tensors(promised: Iterable[Promise], shards: Iterable[ShardPlan]) -> Iterator[Problem]:
    """Yield a problem for each full tensor that no step writes with its value."""
    written = {step.out.name: step for shard in shards for step in shard.steps}
    for promise in promised:
        if not any(same_content(step.source, promise.ref) for step in _places(promise, written)):
            message = f"the result would hold another {promise.name} than the adapter"
            hint = "please report this; --allow-unmatched leaves the tensor out"
            yield Problem(message, promise.where, hint, cause="fit/full-tensor")


def _places(promise: Promise, written: Mapping[str, Step]) -> list[Step]:
    """Return the steps that may write the value."""
    if promise.name in written and promise.is_own:
        return [written[promise.name]]
    return [written[name] for name in (promise.name, *promise.others) if name in written]
