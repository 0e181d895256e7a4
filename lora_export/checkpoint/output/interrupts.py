"""Makes a kill orderly: SIGTERM unwinds like Ctrl-C, and neither tears what must be whole."""

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
    """Whether signals must wait, and those that do."""

    depth: int = 0
    waiting: list[int] = field(default_factory=list)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt (SIGINT) or SystemExit(143) (SIGTERM), now or later."""
        if self.depth:
            self.waiting.append(number)
        else:
            _raise(number)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """A step that a signal may not tear; it is raised right after, if no error is."""
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
    raise SystemExit(128 + number)


@contextmanager
def orderly_interrupts() -> Iterator[Interrupts]:
    """Handle SIGINT and SIGTERM as `Interrupts` says inside the block; main thread only.

    A signal that was ignored stays ignored (nohup). The handlers before are restored.
    """
    interrupts = Interrupts()
    before: dict[signal.Signals, Any] = {}
    is_main = threading.current_thread() is threading.main_thread()
    for number in _SIGNALS if is_main else ():
        # None: a handler that Python did not install and could not put back.
        if (handler := signal.getsignal(number)) is not None and handler != signal.SIG_IGN:
            before[number] = signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
