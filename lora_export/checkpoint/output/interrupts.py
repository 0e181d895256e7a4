"""Makes a kill orderly: SIGTERM unwinds like Ctrl-C, and neither interrupts a publication."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Interrupts:
    """The handler of SIGINT and SIGTERM, which can hold signals back."""

    depth: int = 0
    """How many blocks of `held_back` are open."""
    waiting: list[int] = field(default_factory=list)
    """The signals that have come meanwhile."""

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt (SIGINT) or SystemExit(143) (SIGTERM), now or later."""
        if self.depth:
            self.waiting.append(number)
        else:
            _raise(number)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Hold signals back inside the block; the first is raised at its end.

        An error inside the block is raised instead of the signal.
        """
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
        if self.waiting and not self.depth:
            _raise(self.waiting.pop(0))


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)  # the status that a shell reports for a killed process


@contextmanager
def orderly_interrupts() -> Iterator[Interrupts]:
    """Handle SIGINT and SIGTERM by `Interrupts` inside the block, then restore the old handlers.

    A signal that was ignored stays ignored (nohup). Outside the main thread nothing is changed, as
    Python allows handlers only there.
    """
    interrupts = Interrupts()
    before: dict[signal.Signals, Any] = {}
    is_main = threading.current_thread() is threading.main_thread()
    for number in _SIGNALS if is_main else ():
        # None stands for a handler that Python did not install and could not restore.
        if (handler := signal.getsignal(number)) is not None and handler != signal.SIG_IGN:
            before[number] = signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
