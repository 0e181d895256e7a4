from __future__ import annotations

import os
import signal

import pytest

from lora_export.checkpoint.output.interrupts import Interrupts, orderly_interrupts


@pytest.fixture(autouse=True)
def not_in_the_background():
    """A job in the background ignores SIGINT, and what is ignored stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_for_the_end_of_a_step_that_must_be_whole():
    done = []

    def step(interrupts: Interrupts) -> None:
        with interrupts.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            with interrupts.held_back():
                done.append("inner")
            done.append("outer")

    with orderly_interrupts() as interrupts:
        with pytest.raises(SystemExit) as caught:
            step(interrupts)
        assert caught.value.code == 143
        assert done == ["inner", "outer"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_error_in_the_step_is_told_before_a_signal():
    def step(interrupts: Interrupts) -> None:
        with interrupts.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError

    with orderly_interrupts() as interrupts, pytest.raises(ZeroDivisionError):
        step(interrupts)
