"""What a refusal, a check and an exit status mean: the words of `lora-export explain`.

The tables are data beside this module, and are read where they are asked for.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.errors import LoraExportError, UsageError
from lora_export.toml_file import read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.records import Problem

_FOLDER = Path(__file__).parent

OTHER_STATUSES = {
    0: "done",
    1: "a bug of lora-export; the traceback says where to report it",
    130: "interrupted by SIGINT; nothing is left behind",
    143: "terminated by SIGTERM or SIGHUP; nothing is left behind",
}
"""The exit statuses that are no error's."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that is explained."""

    name: str
    """A cause such as "fit/no-module", the name of a check, or an exit status."""
    facts: Mapping[str, str]
    """Its parts by their titles, in order: what it means, why, what to do."""


@cache
def causes() -> dict[str, Entry]:
    """Return every cause of a refusal, by the code that a problem names."""
    titles = {"means": "meaning", "why": "why", "cure": "what to do", "example": "example"}
    return _read("refusals.toml", titles)


def with_way_out(problem: Problem) -> Problem:
    """Return the problem; without a hint of its own it gets that of its cause."""
    if problem.hint or problem.cause not in causes():
        return problem
    return replace(problem, hint=causes()[problem.cause].facts["what to do"])


@cache
def checks() -> dict[str, Entry]:
    """Return every check by its name; a `*` in it stands for what changes from run to run."""
    titles = {"compares": "compares", "allowed": "allowed", "cure": "if it fails"}
    return _read("checks.toml", titles)


def _read(name: str, titles: Mapping[str, str]) -> dict[str, Entry]:
    content = read_toml(_FOLDER / name).content
    return {
        code: Entry(code, {titles[key]: text for key, text in table.items()})
        for code, table in content.items()
    }


@cache
def statuses() -> dict[str, Entry]:
    """Return every exit status, with the causes that end with it."""
    found = {
        status: Entry(str(status), {"meaning": text}) for status, text in OTHER_STATUSES.items()
    }
    for error in LoraExportError.__subclasses__():
        first = (error.__doc__ or "").strip().splitlines()[0].partition(". ")[0].rstrip(".")
        own = [code for code in causes() if code.startswith(f"{error.code}/")]
        facts = {"meaning": f"{first[0].lower()}{first[1:]}", "causes": ", ".join(own)}
        found[error.status] = Entry(str(error.status), facts)
    return {str(status): found[status] for status in sorted(found)}


def explanation(word: str) -> Entry:
    """Return the entry of a cause, an exit status, or a check by its name or a name that fits.

    Raises:
        UsageError: there is none; the nearest names are in the hint.
    """
    known = {**causes(), **statuses(), **checks()}
    if word in known:
        return known[word]
    for pattern, entry in checks().items():
        if "*" in pattern and fnmatchcase(word, pattern):
            return entry
    _, is_of_a_file, own = word.partition(": ")  # of several files each has its name in front
    if is_of_a_file and own in checks():
        return checks()[own]
    short = {code.rpartition("/")[2]: code for code in causes()}
    near = difflib.get_close_matches(word, [*known, *short], n=3, cutoff=0.5)
    listed = ", ".join(dict.fromkeys(short.get(name, name) for name in near))
    hint = f"did you mean {listed}?" if near else "lora-export explain lists all of them"
    raise UsageError(f"there is no {word!r} to explain", hint=hint, cause="usage/unknown-name")
