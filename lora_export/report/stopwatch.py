"""The stages of a command: their seconds for the report, and how far they are for a display.

Seconds are never in the manifest. It must be the same for the same inputs, and times are never the
same.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from lora_export.records import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_export.records import Unit

    Advance = Callable[[int, int], None]
    """Is called with the work done so far, and with all of it."""

P = ParamSpec("P")
R = TypeVar("R")

OTHER = "other"
"""What is done outside of all stages."""


def unseen(_done: int, _total: int) -> None:
    """Report no progress."""


class Seen:
    """Adds up the bytes that several threads have done, and reports the sum."""

    def __init__(self, progress: Advance, total: int) -> None:
        """Take the function to call, and the bytes in all."""
        self._progress, self._total, self._done = progress, total, 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Add bytes; a file that grows meanwhile does not pass the total."""
        with self._lock:
            self._done = min(self._done + count, self._total)
            self._progress(self._done, self._total)


class Stopwatch:
    """Counts seconds by stage from its own making on, and reports how far each stage is.

    A stage may be entered several times, and inside of another one. A second counts to the
    innermost stage alone, so the seconds add up to their total.
    """

    def __init__(self, report: Callable[[Progress], None] | None = None) -> None:
        """Start counting.

        report: called when a stage begins and when it advances, perhaps from another thread.
        """
        self._report = report or (lambda _: None)
        #: Seconds by stage, in the order of first entry.
        self._seconds: dict[str, float] = {}
        #: The stages that are running, the innermost last.
        self._running: list[Progress] = []
        #: The time of `time.perf_counter` from which on nothing was counted yet.
        self._counted = time.perf_counter()

    @contextmanager
    def __call__(self, stage: str, unit: Unit = "") -> Iterator[Advance]:
        """Count what happens inside to `stage`.

        unit: what its work is counted in, where that is known.

        Yields:
            a function of (done, total) in the unit, which reports how far the stage is.
        """
        self._count()
        self._seconds.setdefault(stage, 0.0)
        depth = len(self._running)
        self._running.append(Progress(stage))
        self._report(self._running[-1])

        def advance(done: int, total: int) -> None:
            self._running[depth] = Progress(stage, done, total, unit)
            self._report(self._running[depth])

        try:
            yield advance
        finally:
            self._count()
            self._running.pop()
            if self._running:
                self._report(self._running[-1])

    def around(self, stage: str, call: Callable[P, R]) -> Callable[P, R]:
        """Return a function that does what `call` does, and counts it to `stage`."""

        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with self(stage):
                return call(*args, **kwargs)

        return counted

    def _count(self) -> None:
        """Count the seconds since the last call to the innermost stage."""
        now = time.perf_counter()
        stage = self._running[-1].stage if self._running else OTHER
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._counted
        self._counted = now

    def facts(self) -> dict[str, dict[str, float]]:
        """Return the entry of a report: seconds by stage, in order of first entry, and in all.

        "other" is the time outside of all stages. The total is the sum of the numbers before it.
        """
        self._count()
        stages = {stage: round(took, 3) for stage, took in self._seconds.items() if stage != OTHER}
        stages[OTHER] = round(self._seconds[OTHER], 3)
        return {"seconds": {**stages, "total": round(sum(stages.values()), 3)}}
