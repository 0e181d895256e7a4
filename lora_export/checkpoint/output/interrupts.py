"""Makes a stop orderly: a signal to stop unwinds the run, and never interrupts a publication.

SIGHUP, which a closed terminal sends, is handled as SIGTERM is.

A signal that came before the publication decides the outcome. Python alone does not give that: an
exception that a handler raises inside an import, or inside a callback of a library in C, may be
lost or come out as another one. So a signal is remembered until it has ended the block, and raised
again where it was lost.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_IMPORTING = "<frozen importlib._bootstrap"
"""How the file names of Python's import machinery begin, in its frames."""

_HALVES = (contextlib.__file__, __file__)
"""The files whose functions leave something half entered or half left when they are cut short."""

IMPORT_SECONDS = 5.0
"""How long an import holds a signal back. A user's module may run for hours when it is imported."""

_PAUSE = 0.1
"""Seconds until a signal that could not be raised, or was lost, is handled again."""


@dataclass(slots=True)
class Interrupts:
    """The handler of _SIGNALS, which can hold signals back."""

    depth: int = 0
    """How many blocks of `held_back` are open."""
    came: int | None = None
    """The first signal that has not yet ended the block."""
    is_settled: bool = False
    """Whether the result is in place, so that a signal comes too late to stop anything."""
    _since: float = 0.0
    """When `came` arrived, by time.monotonic."""
    _raised: BaseException | None = None
    """The exception that was raised for `came`."""
    _is_over: bool = False
    _lock: Any = field(default_factory=_thread.allocate_lock)
    """Held while a signal is sent again, so that none is sent after the end of the block."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt (SIGINT) or SystemExit(143) (the others), now or later.

        Later means after `held_back` or an import, and once the result is settled at the end of
        `orderly_interrupts`. While such an exception unwinds the run, no second one is raised.
        """
        if self.came is None:
            self.came, self._since = number, time.monotonic()
            # Not by threading.Thread: the signal may have come while its lock is taken.
            _thread.start_new_thread(self._send_again, ())
        is_half = frame is not None and frame.f_code.co_filename in _HALVES
        if not (self._is_over or is_half or self._is_importing(frame)):
            self._raise()

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
        self.raise_waiting()

    def raise_waiting(self) -> None:
        """Raise the signal that was held back or lost, if there is one and it may be raised."""
        if self.came is not None:
            self._raise()

    def settle(self) -> None:
        """Hold back every signal from now on: what the run was to do is done."""
        self.is_settled = True
        self.depth += 1

    def release(self) -> None:
        """Raise signals again after `settle`; forget those that came too late until now."""
        if self.is_settled:
            self.dismiss()

    def dismiss(self) -> None:
        """Forget the signals that came so far: the caller has reported them. Raise new ones."""
        self.came = self._raised = None
        self.depth = 0

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Raise the signal that came at the end of the block, whatever the block has raised.

        An exception inside an import is often turned into another one, such as ImportError.
        """
        try:
            yield
        except BaseException as error:
            if self.came is None or self.is_settled or error is self._raised:
                raise
            raise _exception(self.came) from error
        self.raise_waiting()

    def _raise(self) -> None:
        if self.depth or self.came is None or self._is_unwinding():
            return
        self._raised = _exception(self.came)
        raise self._raised

    def _is_importing(self, frame: FrameType | None) -> bool:
        if time.monotonic() - self._since > IMPORT_SECONDS:
            return False
        while frame is not None and not frame.f_code.co_filename.startswith(_IMPORTING):
            frame = frame.f_back
        return frame is not None

    def _is_unwinding(self) -> bool:
        """Return whether the code that runs handles the exception that was raised.

        It runs in an `except`, a `finally` or an `__exit__` then. A second exception would cut the
        cleaning short. Where this is False, the exception was lost.
        """
        return self._is_of_signal(sys.exc_info()[1])

    def _is_of_signal(self, error: BaseException | None) -> bool:
        """Return whether the error is the one that was raised for a signal, or came from it."""
        if self._raised is None:
            return False
        while error is not None and error is not self._raised:
            error = error.__context__
        return error is not None

    @contextmanager
    def quiet_when_lost(self) -> Iterator[None]:
        """Print nothing of a signal that Python drops inside a callback: it is sent again.

        A signal may come while a weak reference is removed. Python prints a traceback then.
        """
        report = sys.unraisablehook

        def unless_of_signal(lost: sys.UnraisableHookArgs) -> None:
            if not self._is_of_signal(lost.exc_value):
                report(lost)

        sys.unraisablehook = unless_of_signal
        try:
            yield
        finally:
            sys.unraisablehook = report

    def _send_again(self) -> None:
        """Send the signal to the main thread until the block is over: it may be lost any time."""
        main = threading.main_thread().ident or 0
        while True:
            time.sleep(_PAUSE)
            with self._lock:
                if self._is_over or self.came is None:
                    return
                signal.pthread_kill(main, self.came)

    def end(self) -> None:
        """Stop sending the signal again; the handler must still be in place."""
        with self._lock:
            self._is_over = True
        # A system call, after which no signal is pending that was sent before.
        signal.pthread_sigmask(signal.SIG_BLOCK, ())


_current: Interrupts | None = None
"""What handles the signals of the main thread at the moment."""


def status_of(number: int) -> int:
    """Return the status that a shell reports for a process killed by SIGINT, else by SIGTERM."""
    return 128 + (number if number == signal.SIGINT else signal.SIGTERM)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(status_of(number))


@contextmanager
def orderly_interrupts(*, is_last: bool = False) -> Iterator[Interrupts]:
    """Handle _SIGNALS by `Interrupts` inside the block, then restore the old handlers.

    A block inside another one shares its `Interrupts`. At the end of the outermost block a signal
    is raised that could not be raised before, whatever the block itself has raised.

    A signal that was ignored stays ignored (nohup). Outside the main thread nothing is changed, as
    Python allows handlers only there.

    is_last: the process ends after the block, so signals are ignored from then on.
    """
    global _current  # noqa: PLW0603 - signals and their handlers belong to the whole process
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    if _current is not None:
        yield _current
        return
    interrupts = Interrupts()
    before: dict[signal.Signals, Any] = {}
    with _raised_at_the_end(interrupts, is_last=is_last), interrupts.quiet_when_lost():
        try:
            _current = interrupts
            for number in _SIGNALS:
                # None stands for a handler that Python did not install and could not restore.
                if (handler := signal.getsignal(number)) not in {None, signal.SIG_IGN}:
                    before[number] = signal.signal(number, interrupts.handle)
            yield interrupts
        finally:
            interrupts.end()
            _current = None
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if is_last else handler)


@contextmanager
def _raised_at_the_end(interrupts: Interrupts, *, is_last: bool) -> Iterator[None]:
    """Raise the signal of a block that is over, also one that came after it was settled."""
    with interrupts.answered():
        yield
    if not is_last:
        interrupts.depth = 0
        interrupts.raise_waiting()


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back the signals of the main thread inside the block; see Interrupts.held_back."""
    with orderly_interrupts() as interrupts, interrupts.held_back():
        yield
