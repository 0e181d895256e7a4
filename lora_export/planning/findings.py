"""The findings of planning: choices and warnings for the report, and problems, raised together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

from lora_export.errors import FitError, UsageError

if TYPE_CHECKING:
    from lora_export.records import Problem


@dataclass(slots=True)
class Findings:
    """Choices, warnings and problems, in the order in which they were found."""

    #: Every naming rule and fact that was used, in words.
    choices: list[str] = field(default_factory=list)
    #: What may be wrong, in words; the merge goes on.
    warnings: list[str] = field(default_factory=list)
    #: What does not fit; raised as a FitError.
    unfit: list[Problem] = field(default_factory=list)
    #: Facts that the user has to give; raised as a UsageError where nothing is unfit.
    missing: list[Problem] = field(default_factory=list)

    @property
    def has_problems(self) -> bool:
        """Return whether anything is unfit or missing."""
        return bool(self.unfit or self.missing)

    def stop_on_problems(self) -> None:
        """Raise everything that is wrong at once.

        Raises:
            FitError: something does not fit; the missing facts, if any, are in it.
            UsageError: only facts are missing.
        """
        if self.unfit:
            _raise(FitError, [*self.unfit, *self.missing])
        if self.missing:
            _raise(UsageError, self.missing)


def _raise(kind: type[FitError | UsageError], problems: list[Problem]) -> NoReturn:
    raise kind.of(grouped(problems))


def grouped(problems: list[Problem]) -> list[Problem]:
    """Join the same problem at many places into one, which names the first three places."""
    places: dict[Problem, list[str]] = {}
    for problem in problems:
        places.setdefault(replace(problem, where=""), []).append(problem.where)
    return [replace(problem, where=_places(where)) for problem, where in places.items()]


def _places(where: list[str]) -> str:
    """Return one place as it is; of several in one file, the file and the first three names.

    The number stands last: a text that is too long loses its middle.
    """
    if len(where) == 1:
        return where[0]
    files = {place.rpartition(": ")[0] for place in where}
    shared = f"{files.pop()}: " if len(files) == 1 and "" not in files else ""
    shown = ", ".join(place.removeprefix(shared) for place in where[:3])
    return f"{shared}{shown}{', ...' if len(where) > 3 else ''} ({len(where)} places)"
