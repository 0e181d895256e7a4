"""The figures that the engine must reach, and the judgement whether it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from results import MERGE, MERGES, VERIFIED, Figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from results import Equality, Memory, Planned, Timing

ALLOWANCE = 128 << 20
"""Memory for blocks in flight, whatever the model's size."""

PEFT_OVER_MERGE = {("all", MERGE): 5.0, ("all", VERIFIED): 3.5}
LESS_STARTUP_OVER_COPY = {("all", MERGE): 1.5, ("qv", MERGE): 1.3, ("qv", VERIFIED): 1.3}
"""By targets and command: merge <= limit * copy + start-up of torch."""

PLAN_SECONDS = 10.0
PLAN_GROWTH = 2.5  # 2 is linear: the step from half to full is twice that from a quarter to half


def figures(
    timing: Iterable[Timing],
    memory: Iterable[Memory],
    equality: Iterable[Equality],
    plans: Sequence[Planned],
) -> list[Figure]:
    """Return every figure with its limit, in the order of the tables."""
    return [
        *(figure for one in timing for figure in _speed(one)),
        *(_peak(one) for one in memory if one["run"] in MERGES),
        _at_most("tensors unlike PEFT's or loralib's", sum(len(e["unlike"]) for e in equality), 0),
        *_planning(plans),
    ]


def _speed(timing: Timing) -> Iterator[Figure]:
    for run, ratios in timing["ratios"].items():
        key = (timing["targets"], run)
        label = f"{run}, {timing['targets']}"
        if key in PEFT_OVER_MERGE:
            value, limit = ratios["peft_over_merge"], PEFT_OVER_MERGE[key]
            yield Figure(
                name=f"PEFT's script / {label}",
                value=value,
                limit=limit,
                least=True,
                unit="x",
                reached=value >= limit,
            )
        if key in LESS_STARTUP_OVER_COPY:
            value, limit = ratios["merge_less_startup_over_copy"], LESS_STARTUP_OVER_COPY[key]
            yield _at_most(f"({label}, less start-up of torch) / cp -r", value, limit, "x")


def _peak(memory: Memory) -> Figure:
    name = f"anonymous memory of {memory['run']}, {memory['shape']}, {memory['targets']}"
    return _at_most(name, memory["anonymous"] / 1e6, memory["allowed"] / 1e6, "MB")


def _planning(plans: Sequence[Planned]) -> Iterator[Figure]:
    if not plans:
        return
    quarter, half, full = (plan["anonymous"] for plan in plans)
    yield _at_most(
        f"plan of {plans[-1]['tensors']:,} tensors", plans[-1]["wall"], PLAN_SECONDS, "s"
    )
    growth = (full - half) / max(half - quarter, 1)
    yield _at_most("growth of the plan's memory (2: linear)", growth, PLAN_GROWTH, "x")


def _at_most(name: str, value: float, limit: float, unit: str = "") -> Figure:
    return Figure(
        name=name, value=value, limit=limit, least=False, unit=unit, reached=value <= limit
    )
