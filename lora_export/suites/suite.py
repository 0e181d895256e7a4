"""The nouns of a suite: cases as they are asked for, before anything runs."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_export.options import VERBS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Verb = Literal["merge", "onnx", "verify"]

PRECISIONS = ("fp16", "int8", "int8-weights", "int4")
"""The precisions that an artefact may name, as `onnx:int8`."""

MADE = ("merge", "onnx", *(f"onnx:{precision}" for precision in PRECISIONS))
"""The artefacts that a suite can make."""

PACKAGE = "package:"
"""Begins a path inside an installed package: `package:NAME/path/in/it`."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must come out of every row of a case, beside its proof."""

    exit: int = 0
    """The exit status of the row's command."""
    cause: str = ""
    """A part of the verdict, or the code of a finding; "" accepts every cause."""
    sha256: Path | None = None
    """A file of lines `SHA-256  NAME`, as sha256sum writes it; None compares no digests."""
    max_error: float | None = None
    """The largest error of an output, in the output's own unit; None leaves the proof's bound."""
    size_below: int | None = None
    """The bytes of all written files must be fewer; None for any size."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a suite: a base, its adapters, and what is made of them or proven."""

    name: str
    place: int
    """The number of the case in the file, from 0."""
    where: str
    """`FILE:LINE` of its name."""
    base: str
    """A path, or one inside a package (PACKAGE); "" where `artefact` has a manifest."""
    adapters: tuple[str, ...]
    artefacts: tuple[str, ...]
    """What is made, each of MADE; empty where `artefact` is verified."""
    artefact: str
    """A path that somebody else made; "" where the suite makes `artefacts`."""
    options: Mapping[str, Any]
    """The options of all verbs, by keyword; a row takes those of its own verb."""
    require: tuple[str, ...] = ()
    """Levels of the proof that must be proven."""
    extras: tuple[str, ...] = ()
    """Extras of lora-export, or packages, without which the case is skipped."""
    expect: Expectation = field(default_factory=Expectation)

    @property
    def line(self) -> int:
        """Return the line of the case in its file."""
        return int(self.where.rpartition(":")[2])

    def rows(self) -> tuple[Asked, ...]:
        """Return what the case asks for, one entry a row."""
        return tuple(Asked(self, artefact) for artefact in self.artefacts or (self.artefact,))


@dataclass(frozen=True, slots=True)
class Asked:
    """One row before it is run: a case, and one of its artefacts."""

    case: Case
    artefact: str
    """One of MADE, or the path of what is verified."""

    @property
    def name(self) -> str:
        """Return the artefact as reports name it: as it is written in the suite."""
        if not self.case.artefact:
            return self.artefact
        # The suite's folder is no part of the name: it differs with the working directory.
        folder = Path(self.case.where.rpartition(":")[0]).parent
        path = Path(self.artefact)
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    @property
    def verb(self) -> Verb:
        """Return the verb that the row calls."""
        if self.case.artefact:
            return "verify"
        return "merge" if self.artefact == "merge" else "onnx"

    def options(self) -> dict[str, Any]:
        """Return the options of the row's verb, by keyword."""
        known = self.takes()
        own = {key: value for key, value in self.case.options.items() if key in known}
        if self.verb == "onnx" and ":" in self.artefact:
            own["precision"] = self.precision
        return own

    @property
    def precision(self) -> str:
        """Return the precision that an ONNX file is made in."""
        _, _, own = self.artefact.partition(":")
        return own or str(self.case.options.get("precision", "fp32"))

    def takes(self) -> set[str]:
        """Return the options that have an effect on the row: --int8 is of one precision alone."""
        known = {option.name for option in VERBS[self.verb]}
        return known if "int8" in self.precision.split(",") else known - {"int8"}


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite as it was read, without a mistake."""

    path: Path
    cases: tuple[Case, ...]

    def folder_of(self, case: Case) -> str:
        """Return the name of the folder for the outputs of a case, unique in the suite."""
        names = [_folder_name(one.name) for one in self.cases]
        own = _folder_name(case.name)
        return own if own and names.count(own) == 1 else f"{own or 'case'}-{case.place + 1}"


def _folder_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80].lower()


def nearest(value: str, known: Collection[str]) -> str:
    """Return a hint that names the right word nearest to `value`, or all of them."""
    near = difflib.get_close_matches(value, known, n=1)
    return f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
