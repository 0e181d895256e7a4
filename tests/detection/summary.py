"""The figures of tests/parity/test_detection.py in one line, whichever worker ran what."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

STAGES = ("merge", "export", "shape specialisation", "runtime optimiser")


def told(properties: Iterable[tuple[str, Any]]) -> list[str]:
    """The lines to print; none where no fault was planted and nothing exported.

    properties: (name, value) as tests recorded them. What ran twice counts once.
    """
    faults: dict[str, dict[str, Any]] = {}
    clean: dict[str, bool] = {}
    for name, value in properties:
        if name == "detection":
            faults[value["fault"]] = value
        elif name == "clean export":
            clean[value["export"]] = value["alarm"]
    if not faults and not clean:
        return []
    networks = {name.partition(":")[0].partition(" in ")[0] for name in faults}
    planted = _faults([*faults.values()], len(networks))
    alarms = f"{len(clean)} clean exports, {sum(clean.values())} false alarms"
    return [f"detection: {planted}; {alarms}"]


def _faults(found: list[dict[str, Any]], architectures: int) -> str:
    right = [fault for fault in found if fault["attributed"]]
    stages = Counter(fault["stage"] for fault in right)
    by_stage = ", ".join(f"{stage} {stages[stage]}" for stage in STAGES)
    hidden = sum(not fault["visible"] for fault in found)
    half = sum(" in " in fault["fault"].partition(":")[0] for fault in found)
    return (
        f"{len(found)} planted faults over {architectures} architectures, {half} of them on a "
        f"base in half precision, "
        f"{sum(fault['caught'] for fault in found)} caught ({hidden} of them below the noise of "
        f"the outputs, by weights or audit alone), {len(right)} attributed to the right stage "
        f"({by_stage}), of which {sum(fault['named'] for fault in found)} named the module"
    )
