"""Two runs that write the same output: one wins, and what belongs together is of one run."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest
from faults.driver import Mode
from faults.scenarios import OLD_ALPHA, SCENARIOS, part, prepare, stagings, tree

PAIRS = 50
KINDS = {
    "file": "merge: file, empty target",
    "folder": "merge: shards, empty target",
    "file, --force": "merge: file, --force",
    "folder, --force": "merge: shards, --force",
}


@pytest.fixture(params=KINDS)
def prepared(request, pool, fault_root):
    [scenario] = [one for one in SCENARIOS if one.name == KINDS[request.param]]
    prepared = prepare(pool, scenario, fault_root / "writers")
    yield prepared
    shutil.rmtree(fault_root / "writers")


@pytest.fixture
def other(pool, prepared):
    """What the second writer makes: the same model with another alpha."""
    case = prepared.copy(prepared.template.with_name("other"))
    [outcome] = pool.run(second(prepared.run(case, "told")))
    assert outcome.status == 0
    return tree(case / "out")


def second(run):
    argv = list(run.argv)
    argv[argv.index("--alpha") + 1] = str(OLD_ALPHA + 1)
    return replace(run, argv=tuple(argv))


def both(pool, prepared, name, delays=(0, 0), stop=0):
    """Two writers at once; (exit statuses, what lies there, litter, messages)."""
    case = prepared.copy(prepared.template.with_name(name))
    one = prepared.run(case, "one", stop, Mode.STOP_BEFORE if stop else Mode.NONE)
    two = second(replace(prepared.run(case, "two"), watch=None))
    runs = [
        replace(run, options={**run.options, "delay": delay})
        for run, delay in zip((one, two), delays, strict=True)
    ]
    outcomes = pool.run(*runs)
    assert tree(case / "in") == prepared.inputs
    litter = stagings(case / "out")
    left = tree(case / "out")
    told = "\n".join(outcome.stderr for outcome in outcomes)
    shutil.rmtree(case)
    return [outcome.status for outcome in outcomes], left, litter, told


def check(prepared, other, found):
    statuses, left, litter, told = found
    results = (prepared.new, other)
    assert "Traceback" not in told
    assert left in results, f"of both writers: {statuses}\n{told}"
    assert litter == []
    if prepared.scenario.force:
        assert set(statuses) <= {0, 6}, told
        assert 0 in statuses
    else:
        assert sorted(statuses) == [0, 6], told
        assert left == results[statuses.index(0)]
        assert "exists already" in told or "appeared meanwhile" in told


@pytest.mark.faults
def test_two_writers_at_once(pool, prepared, other):
    chance = random.Random(0)
    delays = [(0, chance.uniform(0, 0.03))[:: chance.choice((1, -1))] for _ in range(PAIRS)]

    def work(item):
        return both(pool, prepared, f"pair-{item[0]}", item[1])

    for found in pool.map(work, enumerate(delays)):
        check(prepared, other, found)


@pytest.mark.faults
def test_one_writer_runs_whole_at_every_call_of_another(pool, prepared, other):
    """The first stops before a call, and goes on when the second has ended or waits for it."""
    first = next(call.number for call in prepared.calls if call.name == "mkdir")
    last = prepared.calls[-1].number

    def work(stop):
        return stop, both(pool, prepared, f"stop-{stop}", (0, 0.2), stop)

    steps = range(first, last + 1, max(1, (last - first) // 30))
    renames = [call.number for call in prepared.calls if call.name.startswith("rename")]
    for _, found in pool.map(work, sorted({*steps, *renames, *(n + 1 for n in renames)})):
        check(prepared, other, found)
    assert part(prepared.new, prepared.scenario.output) != part(other, prepared.scenario.output)
