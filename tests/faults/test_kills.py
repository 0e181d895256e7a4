"""SIGKILL at any moment, by the clock and not by the call: what is left is never torn."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest
from faults.points import torn_parts, wrong_again
from faults.scenarios import SCENARIOS, prepare, stagings, tree

MARGIN = 1.1


@pytest.mark.faults
def test_a_kill_at_any_moment(pool, fault_root, request, count_points):
    kills = request.config.getoption("--kills")
    scenarios = [s for s in SCENARIOS if not s.argv[0].startswith("onnx")]
    ready = [
        prepare(pool, scenario, fault_root / f"killed-{number}")
        for number, scenario in enumerate(scenarios)
    ]
    durations = [whole(pool, prepared) for prepared in ready]
    chance = random.Random(kills)
    moments = [
        (number, number % len(ready), chance.uniform(0, MARGIN * durations[number % len(ready)]))
        for number in range(kills)
    ]

    def work(item):
        number, which, moment = item
        prepared = ready[which]
        case = prepared.copy(prepared.template.with_name(f"kill-{number}"))
        run = prepared.run(case, "killed")
        [killed] = pool.run(replace(run, options={**run.options, "kill": moment}))
        torn = list(torn_parts(prepared, tree(case / "out")))
        faults = [*torn, *([] if killed.status in {0, -9} else [killed.stderr])]
        if tree(case / "in") != prepared.inputs:
            faults.append("the inputs have changed")
        half_done = bool(stagings(case / "out"))
        faults += wrong_again(pool, prepared, case)
        shutil.rmtree(case)
        return killed.status, half_done, bool(torn), faults

    found = pool.map(work, moments)
    faults = [fault for *_, faults in found for fault in faults]
    assert not faults, faults[:5]
    killed = [status for status, *_ in found if status]
    assert len(killed) > kills / 2
    assert sum(half_done for _, half_done, *_ in found) > kills / 20, "they came too early or late"
    torn, states = sum(torn for *_, torn, _ in found), sum(len(p.again) for p in ready)
    count_points("SIGKILL at a random moment", len(killed), torn, states)
    for prepared in ready:
        shutil.rmtree(prepared.template.parent)


def whole(pool, prepared):
    """Seconds of a run that nobody kills: of the fastest, or most kills would come too late."""
    seconds = []
    for number in range(3):
        case = prepared.copy(prepared.template.with_name(f"whole-{number}"))
        [outcome] = pool.run(prepared.run(case, f"whole-{number}"))
        seconds.append(outcome.seconds)
    return min(seconds)
