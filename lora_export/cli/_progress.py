"""What a command does at the moment, on stderr: a bar at a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from lora_export.cli._streams import echo_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_export.records import Progress

QUIET = 2.0
"""Seconds that a stage may take before a plain line names it."""
AGAIN = 10.0
"""Seconds from one plain line to the next."""
_TICK = 0.5
"""Seconds between two looks at the clock. Most stages report nothing while they run."""


class _Shown(Protocol):
    """A display: it is called with every event, and looks at the clock in between."""

    def __call__(self, event: Progress) -> None: ...
    def look(self, now: float) -> None: ...


@contextmanager
def shown_progress(*, wanted: bool) -> Iterator[Callable[[Progress], None]]:
    """Yield a function of `Progress` that shows it.

    It writes to the stderr of now: the libraries that capture a graph are kept quiet by a
    redirection of `sys.stderr`.

    wanted: False gives a function that does nothing.
    """
    if not wanted:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        with _watched(PlainLines(partial(echo_error, file=sys.stderr))) as show:
            yield show


@contextmanager
def _watched(shown: _Shown) -> Iterator[_Shown]:
    """Let a display look at the clock from another thread until the end of the block."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_TICK):
            shown.look(time.monotonic())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        ended.set()
        thread.join()


class PlainLines:
    """Writes a line for a stage that takes longer than `QUIET`, and one every `AGAIN` after it."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the function that writes a line, and the one that gives seconds."""
        self._write, self._clock = write, clock
        self._lock = threading.Lock()
        self._event: Progress | None = None
        self._begun = self._due = 0.0

    def __call__(self, event: Progress) -> None:
        """Take the newest event; a new stage is timed from now on."""
        with self._lock:
            if self._event is None or event.stage != self._event.stage:
                self._begun = self._clock()
                self._due = self._begun + QUIET
            self._event = event

    def look(self, now: float) -> None:
        """Write the line that is due."""
        with self._lock:
            if self._event is not None and now >= self._due:
                self._write(line_of(self._event, now - self._begun))
                self._due = now + AGAIN


def line_of(event: Progress, elapsed: float) -> str:
    """Return a stage as a line: what is done of it, and the time left where it is known."""
    text = f"{event.stage}: {elapsed:.0f} s"
    if not event.total:
        return f"{text} so far"
    text += f", {_amount(event)}"
    if event.done:
        text += f", about {elapsed * (event.total - event.done) / event.done:.0f} s left"
    return text


def _amount(event: Progress) -> str:
    """Return how much is done of how much, in the stage's unit."""
    total = event.total or 0
    if event.unit != "bytes":
        return f"{event.done:,} of {total:,} {event.unit}".rstrip()
    name, size = next((u for u in _UNITS if total >= u[1]), ("kB", 1000))
    return f"{event.done / size:.1f} of {total / size:.1f} {name}"


_UNITS = (("GB", 10**9), ("MB", 10**6))


@contextmanager
def _bar() -> Iterator[_Shown]:
    """Yield a display of the current stage: a bar with the time left where the work is known."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Known(ProgressColumn):
        """Another column, for a stage whose amount of work is known."""

        def __init__(self, column: ProgressColumn) -> None:
            super().__init__()
            self._column = column

        def render(self, task: Task) -> object:  # type: ignore[override]
            return self._column.render(task) if task.total else Text("")

    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        Known(BarColumn(bar_width=24)),
        Known(TextColumn("{task.fields[amount]}")),
        Known(TimeRemainingColumn()),
        console=Console(file=sys.stderr),
        transient=True,
    )

    class Shown:
        """The bar of one stage, which is replaced by that of the next."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._stage = ""
            self._task = bars.add_task("start", total=None, amount="")

        def __call__(self, event: Progress) -> None:
            with self._lock:
                if event.stage != self._stage:
                    bars.remove_task(self._task)
                    self._task = bars.add_task(event.stage, total=None, amount="")
                    self._stage = event.stage
                amount = _amount(event) if event.total else ""
                bars.update(self._task, completed=event.done, total=event.total, amount=amount)

        def look(self, now: float) -> None:
            """Draw the bar now; rich redraws it ten times a second as well."""
            bars.refresh()

    with bars:
        yield Shown()
