"""Every call that changes the disk is broken in turn, in every way, for every command."""

from __future__ import annotations

import random
import shutil

import pytest
from faults.points import points, state_of, try_point
from faults.scenarios import SCENARIOS, prepare

SAMPLE = 12
SHOWN = 10


@pytest.fixture(params=SCENARIOS, ids=lambda scenario: scenario.name)
def prepared(request, pool, fault_root):
    root = fault_root / f"scenario-{SCENARIOS.index(request.param)}"
    prepared = prepare(pool, request.param, root)
    yield prepared
    shutil.rmtree(root)


def run_points(pool, prepared, chosen):
    """(how many took place, how many tore the output); the test fails if anything was wrong."""

    def work(item):
        number, point = item
        return try_point(pool, prepared, point, prepared.template.with_name(f"point-{number}"))

    verdicts = pool.map(work, enumerate(chosen))
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    shown = "\n".join(faults[:SHOWN])
    assert not faults, f"{len(faults)} faults, of which the first:\n{shown}"
    return sum(verdict.fired for verdict in verdicts), sum(verdict.torn for verdict in verdicts)


@pytest.mark.faults
def test_every_fault_point(pool, prepared, count_points):
    chosen = list(points(prepared.calls))
    fired, torn = run_points(pool, prepared, chosen)
    count_points(prepared.scenario.name, fired, torn, len(prepared.again))
    assert fired >= len(chosen) * 0.95  # threads may take their calls in another order
    assert torn == 0


def test_the_servers_have_one_thread(pool):
    assert pool.threads == 1, "a fork would not be a clean copy"


def test_a_sample_of_fault_points(pool, prepared):
    chosen = list(points(prepared.calls))
    renames = [p for p in chosen if p.call.name.startswith("rename") and p.mode.is_kill]
    sample = random.Random(0).sample(chosen, SAMPLE - len(renames))
    run_points(pool, prepared, [*renames, *sample])


@pytest.mark.parametrize(
    "prepared",
    [scenario for scenario in SCENARIOS if "ahead" in scenario.options],
    indirect=True,
    ids=lambda scenario: scenario.name,
)
def test_the_head_start_is_reached(prepared):
    """Else its calls would not be among those that are broken: each has a number of its own."""
    first = next(n for n, call in enumerate(prepared.calls) if call.name == "pwrite")
    ahead = [(call.name, call.path) for call in prepared.calls[:first]]
    assert {"fallocate", "copy_file_range"} <= {name for name, _ in ahead}
    opened = [path for name, path in ahead if name == "open"]
    assert len(set(opened)) < len(opened), "the pipeline opens what the head start has made"


def left(folder, owner="7-0123456789abcdef", **files):
    """What a killed run may leave: an output and a staging of it."""
    staging = folder / "out" / f".out.lora-export-{owner}"
    staging.mkdir(parents=True)
    for name, text in {"done": "a", "begun": "b", **files}.items():
        (staging / name).write_text(text)
    (folder / "out" / "out").write_text("old")
    return folder


def test_what_two_runs_leave_is_one_state(tmp_path):
    first = state_of(left(tmp_path / "1"))
    assert first == state_of(left(tmp_path / "2", owner="8-fedcba9876543210"))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "out" / "out").write_text("new"),
        lambda folder: (folder / "out" / "out").chmod(0o400),
        lambda folder: (folder / "out" / "out").unlink(),
        lambda folder: (folder / "out" / "link").symlink_to("out"),
        lambda folder: next(folder.glob("out/.out*/done")).write_text("c"),
        lambda folder: next(folder.glob("out/.out*/done")).rename(folder / "out" / "done"),
        lambda folder: next(folder.glob("out/.out*")).rename(folder / "out" / "staging"),
        lambda folder: relink(next(folder.glob("out/.out*/done")), folder / "out" / "out"),
    ],
)
def test_every_difference_makes_another_state(tmp_path, change):
    first = state_of(left(tmp_path / "1", done="old"))
    change(left(tmp_path / "2", done="old"))
    assert state_of(tmp_path / "2") != first


def relink(path, target):
    """Make `path` another name of `target`, with the same content as before."""
    path.unlink()
    path.hardlink_to(target)
