"""A malformed input, what is done with it, and how it must be refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hostile.cage import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Prepare = Callable[[Path], Callable[[], object]]

RIGHT = "accepted"
"""The class of an input that looks odd and is right; it does not count as malformed."""


@dataclass(frozen=True)
class Case:
    """One input."""

    group: str
    name: str
    prepare: Prepare
    """Makes the files in an empty folder and returns the call that reads them."""
    expects: tuple[str, ...] = ("input",)
    """The words of the errors that refuse it, or RIGHT with what else may be."""


@dataclass(frozen=True)
class Verdict:
    """Whether a case went as expected."""

    case: Case
    outcome: Outcome
    left: tuple[str, ...]
    """Files that a refused call has left behind."""

    @property
    def faults(self) -> list[str]:
        """Return what is wrong, in words."""
        found = []
        if self.outcome.kind not in self.case.expects:
            expected = " or ".join(self.case.expects)
            found.append(f"{self.outcome.kind}, not {expected}: {self.outcome.text}")
        if self.outcome.kind != RIGHT and self.outcome.over:
            found.append(f"took {self.outcome.over}")
        found += self.outcome.events
        found += [f"left {name}" for name in self.left]
        return [f"{self.case.group}: {self.case.name}: {fault}" for fault in found]


def try_case(case: Case, folder: Path) -> Verdict:
    """Make the input of a case, run its call in a cage, and look at what it left."""
    place = folder / "case"
    place.mkdir()
    try:
        call = case.prepare(place)
        before = _names(place)
        outcome = run(call, place)
        if outcome.kind != RIGHT and outcome.over:  # the same work takes longer on a busy machine
            outcome = run(call, place)
        left = sorted(_names(place) - before) if outcome.kind != RIGHT else ()
    finally:
        _remove(place)
    return Verdict(case, outcome, tuple(left))


def try_all(cases: Sequence[Case], folder: Path) -> list[Verdict]:
    """Try every case, one after another."""
    return [try_case(case, folder) for case in cases]


def _names(folder: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118 - names may be odd
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def _remove(folder: Path) -> None:
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o700)  # noqa: PTH101 - as above
    shutil.rmtree(folder)
