"""How much a piece of code does, counted in Python's own instructions: a clock would count others'.

What is done inside of a C function is one step, whatever it takes.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


class Steps:
    """A count of instructions, which ends the test where there are too many."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.count = 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        """Count an instruction of `frame`; what sys.settrace calls."""
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.count += 1
            if self.count > self.most:
                sys.settrace(None)
                pytest.fail(f"took more than {self.most:,} steps")
        return self.trace


@contextmanager
def at_most(most: float) -> Iterator[Steps]:
    """Fail the test as soon as the calls inside of the block have taken more steps than `most`."""
    steps, before = Steps(most), sys.gettrace()
    sys.settrace(steps.trace)
    try:
        yield steps
    finally:
        sys.settrace(before)


def count_steps(function: Callable[[], object]) -> int:
    """Return how many steps a call takes."""
    with at_most(float("inf")) as steps:
        function()
    return steps.count
