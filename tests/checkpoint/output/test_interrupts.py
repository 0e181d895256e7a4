from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import weakref

import pytest

from lora_export.checkpoint.output import interrupts as module
from lora_export.checkpoint.output.interrupts import (
    Interrupts,
    held_back,
    orderly_interrupts,
    status_of,
)

PATIENCE = 60
"""Seconds after which a signal counts as lost."""


@pytest.fixture(autouse=True)
def not_in_the_background():
    """A job in the background ignores SIGINT or SIGHUP, and what is ignored stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def go_on() -> None:
    """Run as a command does that has lost a signal."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(0.001)


def lose() -> None:
    """Catch what a signal raises, as libraries in C do that call Python."""
    try:
        send()
        go_on()
    except SystemExit:
        pass


def test_a_signal_waits_for_the_end_of_a_step_that_must_be_whole():
    done = []

    def step(interrupts: Interrupts) -> None:
        with interrupts.held_back():
            send()
            with interrupts.held_back():
                done.append("inner")
            done.append("outer")

    with orderly_interrupts() as interrupts:
        with pytest.raises(SystemExit) as caught:
            step(interrupts)
        assert caught.value.code == 143
        assert done == ["inner", "outer"]
        interrupts.dismiss()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        interrupts.dismiss()


def test_a_terminal_that_is_closed_ends_the_run_as_sigterm_does():
    with orderly_interrupts() as interrupts:
        with pytest.raises(SystemExit) as caught:
            send(signal.SIGHUP)
        assert caught.value.code == status_of(signal.SIGHUP) == 143
        interrupts.dismiss()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


class Referred:
    """Something that a weak reference may have."""


def test_a_signal_inside_a_callback_is_raised_later_and_prints_nothing(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: printed.append(lost.exc_type))
    with orderly_interrupts() as interrupts:
        one, other = Referred(), Referred()
        kept = [weakref.ref(one, lambda _: send()), weakref.ref(other, lambda _: 1 / 0)]
        del other
        assert len(printed) == 1  # an error of any other kind is shown as ever
        del one
        with pytest.raises(SystemExit):
            time.sleep(PATIENCE)
        interrupts.dismiss()
    assert len(printed) == 1
    assert len(kept) == 2


def test_an_error_in_the_step_is_raised_before_a_signal():
    seen = []

    def step(interrupts: Interrupts) -> None:
        with interrupts.held_back():
            send()
            raise ZeroDivisionError

    def run() -> None:
        with orderly_interrupts() as interrupts:
            with pytest.raises(ZeroDivisionError):
                step(interrupts)
            seen.append(True)

    with pytest.raises(SystemExit):
        run()
    assert seen == [True]


def test_a_signal_that_a_library_loses_is_raised_again():
    def run() -> None:
        with orderly_interrupts():
            lose()
            go_on()

    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 143


def test_a_signal_that_is_lost_last_of_all_is_raised_at_the_end():
    with pytest.raises(SystemExit), orderly_interrupts():
        lose()


def test_a_signal_that_comes_out_as_another_error_is_raised_all_the_same():
    def run() -> None:
        with orderly_interrupts():
            try:
                send(signal.SIGINT)
                go_on()
            except KeyboardInterrupt:
                raise ImportError("numpy is not installed") from None

    with pytest.raises(KeyboardInterrupt) as caught:
        run()
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Return what imports code that is interrupted meanwhile."""
    monkeypatch.syspath_prepend(tmp_path)

    def import_it(text: str) -> None:
        (tmp_path / "interrupted.py").write_text(text)
        sys.modules.pop("interrupted", None)
        importlib.invalidate_caches()
        importlib.import_module("interrupted")

    yield import_it
    sys.modules.pop("interrupted", None)


INTERRUPTED = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
for _ in range(100):
    time.sleep(0.004)
done.append(True)
"""


def test_an_import_holds_a_signal_back_and_ends(imported, monkeypatch):
    done: list[bool] = []
    monkeypatch.setattr("builtins.done", done, raising=False)

    def run() -> None:
        with orderly_interrupts():
            imported(INTERRUPTED)
            go_on()

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == [True]


def test_an_import_that_takes_long_is_interrupted(imported, monkeypatch):
    done: list[bool] = []
    monkeypatch.setattr("builtins.done", done, raising=False)
    monkeypatch.setattr(module, "IMPORT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), orderly_interrupts():
        imported(INTERRUPTED)
    assert done == []


def test_cleaning_is_not_cut_short_by_further_signals():
    cleaned = []

    def run() -> None:
        with orderly_interrupts():
            try:
                send()
                go_on()
            finally:
                send(signal.SIGINT)
                for _ in range(100):
                    time.sleep(0.004)  # longer than until it is sent again
                cleaned.append(True)

    with pytest.raises(SystemExit):
        run()
    assert cleaned == [True]


def test_a_signal_that_comes_too_late_is_raised_at_the_end_of_the_block():
    done = []

    def run(**settings) -> None:
        with orderly_interrupts(**settings) as interrupts:
            interrupts.settle()
            send(signal.SIGINT)
            time.sleep(0.3)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == [True]


def test_once_the_result_is_settled_a_signal_ends_the_printing_only():
    with orderly_interrupts() as interrupts:
        interrupts.settle()
        send()
        interrupts.release()
        assert interrupts.is_settled
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        interrupts.dismiss()


def test_the_last_block_of_a_process_ignores_what_comes_after_it():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with orderly_interrupts(is_last=True) as interrupts:
            interrupts.settle()
            send()
        send(signal.SIGINT)
        send()
        time.sleep(0.3)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_blocks_share_one_handler_and_give_the_old_one_back():
    before = signal.getsignal(signal.SIGTERM)
    with orderly_interrupts() as outer, orderly_interrupts() as inner:
        assert inner is outer
        with held_back():
            assert outer.depth == 1
    assert signal.getsignal(signal.SIGTERM) is before
