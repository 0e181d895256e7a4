"""Inputs made by chance: what we accept, the reference library reads with the same result.

`--examples N` makes N of them in all. PEFT takes most of the time, so one in fifty is an adapter.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hostile import fuzz_adapters, fuzz_headers, fuzz_pickles
from hostile.cage import STOP_SECONDS, run

KINDS = {
    "headers": (fuzz_headers, 0.66),
    "pickles": (fuzz_pickles, 0.32),
    "adapters": (fuzz_adapters, 0.02),
}
"""The module of each kind, and its share of the examples."""

PARTS = 4
"""Tests that a kind is divided into, for the workers of a run."""

BATCH = {"headers": 4000, "pickles": 1500, "adapters": 75}
"""Examples of one fork, whose processor seconds the cage bounds."""

SAMPLE = {"headers": 300, "pickles": 60, "adapters": 6}
"""Examples of a default run."""


def fuzz(kind, count, seed, folder, record_property):
    module = KINDS[kind][0]
    total = {"kind": kind, "examples": 0, "accepted": 0, "beyond": 0}
    while total["examples"] < count:
        batch = min(BATCH[kind], count - total["examples"])
        start = seed * 1_000_003 + total["examples"]
        outcome = run(lambda: json.dumps(asdict(module.run(start, batch, folder))), folder)  # noqa: B023
        assert outcome.kind == "accepted", f"seed {start}: {outcome} (of {STOP_SECONDS} s)"
        assert not outcome.events, f"seed {start}: {outcome.events}"
        found = json.loads(outcome.value)
        assert not found["wrong"], f"seed {start}: {found['wrong']} wrong: {found['shown']}"
        assert not found["tracebacks"], f"seed {start}: {found['tracebacks']}: {found['shown']}"
        assert found["examples"] == batch
        for what in ("examples", "accepted", "beyond"):
            total[what] += found[what]
    assert total["accepted"] > 0, "nothing was accepted, so nothing was compared"
    record_property("hostile fuzz", total)


@pytest.mark.hostile
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_accepted_equals_the_reference(kind, part, tmp_path, pytestconfig, record_property):
    share = KINDS[kind][1] * pytestconfig.getoption("examples")
    fuzz(kind, -int(-share // PARTS), part, tmp_path, record_property)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_equal_the_reference(kind, tmp_path, record_property):
    fuzz(kind, SAMPLE[kind], 99, tmp_path, record_property)
