"""A check as a sentence, for verdicts, messages and reports."""

from __future__ import annotations

from math import isfinite, isnan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.records import Check, Problem

_LEAST = 0.1
"""The smallest percentage that is shown as a number."""

_EXPLAINED = 3
"""Causes of one refusal of which each is named in a line of its own."""


def failed_sentence(check: Check) -> str:
    """Return what a failed check found, as one sentence without a full stop."""
    if check.detail:
        return check.detail
    where = f" at {check.where}" if check.where else ""
    if check.at_least:
        return (
            f"{check.worst:.3g} was measured{where}, and more than {check.tolerance:.3g} is needed"
        )
    if check.tolerance:
        return f"the difference{where} is {times_allowed(check.worst, check.tolerance)}"
    return f"not everything is as it must be{where}"


def named_sentence(check: Check) -> str:
    """Return what a failed check found, with the check's name: for messages that stand alone."""
    return f"{failed_sentence(check)} (check: {check.name})"


def passed_words(check: Check) -> str:
    """Return what a passed check found; of a measured one, how much of what is allowed."""
    if not check.tolerance or check.at_least:
        return check.detail or "as it must be"
    measured = (
        f"{percent(check.worst / check.tolerance)} of what is allowed"
        f" ({check.worst:.2g} of {check.tolerance:.2g})"
        if check.worst
        else "equal"
    )
    return f"{measured}, {check.detail}" if check.detail else measured


def times_allowed(worst: float, tolerance: float) -> str:
    """Return a failed difference beside what is allowed: `0.0012, 3.1 times what is allowed`."""
    if not isfinite(worst) or not isfinite(tolerance) or not tolerance:
        return f"{worst:.2g}, where {tolerance:.2g} is allowed"
    if f"{worst / tolerance:.2g}" == "1":
        return "{}, where {} is allowed".format(*_apart(worst, tolerance))
    return f"{worst:.2g}, {times(worst / tolerance)} what is allowed ({tolerance:.2g})"


def _apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers with as many digits as it takes to tell them apart."""
    digits = next((n for n in range(2, 17) if f"{one:.{n}g}" != f"{other:.{n}g}"), 17)
    return f"{one:.{digits}g}", f"{other:.{digits}g}"


def times(number: float) -> str:
    """Return a factor in words: `3.1 times`, `4,600 times`."""
    if not isfinite(number):
        return "infinitely many times"
    return f"{number:,.0f} times" if number >= 100 else f"{number:.2g} times"


def percent(share: float) -> str:
    """Return a share in percent with at most two digits that count: `6 %`, `0.4 %`, `1,200 %`."""
    value = 100 * share
    if not isfinite(value):
        return "NaN %" if isnan(value) else "\N{INFINITY} %"
    if 0 < value < _LEAST:
        return f"less than {_LEAST:g} %"
    rounded = float(f"{value:.1g}") if value < 10 else round(value)
    return f"{rounded:,.{0 if rounded >= 1 else 1}f} %"


def after_refusal(problems: Sequence[Problem]) -> str:
    """Return what to do now: the last hint, else the command that explains the first cause."""
    return problems[-1].hint or next(iter(explaining(problems)), "")


def explaining(problems: Sequence[Problem]) -> list[str]:
    """Return the command that explains each of the first causes of a refusal."""
    causes = [*dict.fromkeys(problem.cause for problem in problems if problem.cause)]
    return [f"lora-export explain {cause}" for cause in causes[:_EXPLAINED]]
