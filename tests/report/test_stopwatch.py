"""The stages of a command: whose second is counted where, and what a listener is told."""

import threading

import pytest

from lora_export.records import Progress
from lora_export.report import stopwatch
from lora_export.report.stopwatch import Seen, Stopwatch


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    at = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: at[0])
    return at


def test_a_second_counts_once_and_all_add_up(now):
    clock = Stopwatch()
    now[0] += 1.0004
    with clock("merge"):
        now[0] += 2.0004
        with clock("import torch"):
            now[0] += 4.0004
        now[0] += 8
    now[0] += 16

    def fail():
        with clock("merge"):
            now[0] += 32
            raise ZeroDivisionError

    with clock("publish"), pytest.raises(ZeroDivisionError):
        fail()
    now[0] += 64
    assert clock.facts()["seconds"] == {
        "merge": 42.0,
        "import torch": 4.0,
        "publish": 0.0,
        "other": 81.0,
        "total": 127.0,
    }


def test_numbers_that_are_rounded_add_up_too(now):
    clock = Stopwatch()
    for stage in ("a", "b", "c"):
        with clock(stage):
            now[0] += 0.0004
    seconds = clock.facts()["seconds"]
    assert seconds.pop("total") == sum(seconds.values()) == 0.0


def test_events_name_the_innermost_stage():
    told = []
    clock = Stopwatch(told.append)
    with clock("merge", "bytes") as advance:
        advance(1, 4)
        with clock("hash", "bytes") as hashed:
            hashed(2, 2)
        advance(4, 4)
    assert told == [
        Progress("merge"),
        Progress("merge", 1, 4, "bytes"),
        Progress("hash"),
        Progress("hash", 2, 2, "bytes"),
        Progress("merge", 1, 4, "bytes"),
        Progress("merge", 4, 4, "bytes"),
    ]


def test_pieces_of_several_threads_are_added_up_and_never_pass_the_total():
    told = []
    seen = Seen(lambda *both: told.append(both), 100)
    threads = [threading.Thread(target=lambda: [seen(1) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [(min(count, 100), 100) for count in range(1, 121)]
