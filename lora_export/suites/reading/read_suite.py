"""Read a suite: every mistake of the file at once, with its line, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.option_tables import read_options
from lora_export.records import Problem
from lora_export.suites.reading.expected_keys import read_expectation
from lora_export.suites.reading.suite_options import OPTIONS, refused_options
from lora_export.suites.suite import MADE, PACKAGE, Case, Suite, nearest
from lora_export.toml_file import read_toml

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from lora_export.toml_file import Place, TomlFile

FORMAT = 1

LEVELS = ("manifest", "weights", "model", "file", "runtime", "precision")
"""The levels of the proof that a case may require."""

TOP = ("format", "defaults", "models", "case")
PATHS = ("base", "adapters")
SHARED = (*PATHS, "require", "extras")
"""The keys, beside options, of [defaults], of a model and of a case."""
CASE = ("name", "use", "artefacts", "artefact", "expect", *SHARED)
"""The keys of a case, beside options."""


def read_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        InputError: there is no such file, or it is no text.
        UsageError: with every mistake of the file; each has `FILE:LINE` and the nearest right key.
        StorageError: the system refuses to read it.
    """
    reader = _Reader(read_toml(path))
    cases = reader.cases()
    if reader.problems:
        raise UsageError.of(sorted(reader.problems, key=_line))
    return Suite(path, tuple(cases))


def _line(problem: Problem) -> int:
    _, _, line = problem.where.rpartition(":")
    return int(line) if line.isdecimal() else 0


@dataclass(slots=True)
class _Reader:
    """Reads one file, and collects its mistakes."""

    file: TomlFile
    problems: list[Problem] = field(default_factory=list)

    def cases(self) -> list[Case]:
        self._check_top()
        defaults = self._table(("defaults",), SHARED)
        models = {name: self._table(("models", name), SHARED) for name in self._models()}
        tables = self.file.content.get("case", [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            self._add(("case",), "case is no list of tables", "write [[case]]")
            return []
        if not tables:
            self._add((), "has no [[case]]", "add one: docs/ci.md")
        cases = [self._case(place, defaults, models) for place in range(len(tables))]
        self._check_names(cases)
        return cases

    def _add(self, place: Place, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, self.file.at(*place), hint, cause="usage/suite"))

    def _check_top(self) -> None:
        content = self.file.content
        for key in content:
            if key not in TOP:
                self._add((key,), f"unknown key {key!r}", nearest(key, TOP))
        if content.get("format") != FORMAT or isinstance(content.get("format"), bool):
            found = content.get("format", "missing")
            self._add(("format",), f"format is {found}", f"write format = {FORMAT}")

    def _models(self) -> Iterator[str]:
        models = self.file.content.get("models", {})
        if not isinstance(models, dict):
            self._add(("models",), "models is no table", "write [models.NAME]")
            return
        for name, table in models.items():
            if isinstance(table, dict):
                yield name
            else:
                self._add(("models", name), f"{name} is no table", f"write [models.{name}]")

    def _table(self, place: Place, others: Collection[str]) -> dict[str, Any]:
        """Return the keywords of a table's options, and its other keys, checked."""
        table: Any = self.file.content
        for key in place:
            table = table.get(key, {}) if isinstance(table, dict) else table[key]
        if not isinstance(table, dict):
            self._add(place, f"{place[-1]} is no table", f"write [{place[-1]}]")
            return {}
        if not table:
            return {}
        misplaced = refused_options(self.file, place, table)
        self.problems += misplaced.values()
        known = (*others, *misplaced)
        values, problems = read_options(self.file, place, OPTIONS, others=known)
        self.problems += problems
        return {**values, **self._others(place, table, others)}

    def _others(
        self, place: Place, table: Mapping[str, Any], known: Collection[str]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in ("base", "artefact", "name", "use"):
            if key in table and key in known:
                found[key] = self._text((*place, key), table[key])
        for key in ("adapters", "artefacts", "require", "extras"):
            if key in table and key in known:
                found[key] = self._texts((*place, key), table[key])
        for key in ("base", "artefact"):
            if found.get(key):
                found[key] = self._path(found[key])
        if "adapters" in found:
            found["adapters"] = tuple(map(self._path, found["adapters"]))
        self._choices(place, "require", found, LEVELS)
        self._choices(place, "artefacts", found, MADE)
        return found

    def _text(self, place: Place, value: object) -> str:
        if isinstance(value, str) and value:
            return value
        self._add(place, f"{place[-1]} is {value!r}", "it takes a text in quotes")
        return ""

    def _texts(self, place: Place, value: object) -> tuple[str, ...]:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list) and all(isinstance(one, str) and one for one in values):
            if place[-1] == "adapters" and not values:
                self._add(place, "adapters is empty", _LACKING["adapters"])
            return tuple(values)
        self._add(place, f"{place[-1]} is {value!r}", "it takes a list of texts in quotes")
        return ()

    def _choices(
        self, place: Place, key: str, found: Mapping[str, Any], choices: Collection[str]
    ) -> None:
        for value in found.get(key, ()):
            if value not in choices:
                self._add((*place, key), f"{key} has {value!r}", nearest(value, choices))

    def _path(self, text: str) -> str:
        return text if text.startswith(PACKAGE) else str(self.file.path.parent / text)

    def _case(
        self, number: int, defaults: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]
    ) -> Case:
        place = ("case", number)
        own = self._table(place, CASE)
        table = self.file.content["case"][number]
        expect, problems = read_expectation(self.file, place, table.get("expect", {}))
        self.problems += problems
        used = own.get("use", "")
        if used and used not in models:
            hint = nearest(used, models) if models else f"write [models.{used}]"
            self._add((*place, "use"), f"use names no model: {used!r}", hint)
        values = {**defaults, **models.get(used, {}), **own}
        unknown = PATHS if used and used not in models else ()  # what the model would give
        if _is_alone(table, values):
            values = {key: value for key, value in values.items() if key not in PATHS}
        self._check_case(place, table, values, unknown)
        options = {option.name for option in OPTIONS}
        case = Case(
            name=own.get("name", ""),
            place=number,
            where=self.file.at(*place, "name"),
            base=values.get("base", ""),
            adapters=values.get("adapters", ()),
            artefacts=() if "artefact" in own else _named_whole(values, own.get("artefacts")),
            artefact=own.get("artefact", ""),
            options={key: value for key, value in values.items() if key in options},
            require=values.get("require", ()),
            extras=values.get("extras", ()),
            expect=expect,
        )
        self._check_options(place, case, own)
        self._check_files(place, case)
        return case

    def _check_case(
        self,
        place: Place,
        table: Mapping[str, Any],
        values: Mapping[str, Any],
        unknown: Collection[str],
    ) -> None:
        """Report what a case lacks, and keys that contradict each other."""
        if "name" not in table:
            self._add(place, "the case has no name", 'write name = "..."')
        if "artefact" in table and "artefacts" in table:
            hint = "artefacts are made, artefact is verified: leave one of both out"
            self._add((*place, "artefact"), "artefact and artefacts exclude each other", hint)
        if "artefacts" in table and not table["artefacts"]:
            self._add((*place, "artefacts"), "artefacts is empty", f"some of: {', '.join(MADE)}")
        given = {*table, *unknown}
        lacks = [key for key in PATHS if not values.get(key) and key not in given]
        if lacks and not ("artefact" in table and len(lacks) == len(PATHS)):
            named = " and no ".join(lacks)
            self._add(place, f"the case has no {named}", _LACKING[lacks[0]])

    def _check_options(self, place: Place, case: Case, own: Mapping[str, Any]) -> None:
        """Report options of the case itself that none of its rows takes."""
        taken = {name for asked in case.rows() for name in asked.takes()}
        flags = {option.name: option.flag.removeprefix("--") for option in OPTIONS}
        for name in own:
            if name in flags and name not in taken:
                verbs = " and ".join(dict.fromkeys(asked.verb for asked in case.rows()))
                message = f"{flags[name]} has no effect: the case runs {verbs}"
                self._add((*place, flags[name]), message, "leave it out")
        if "precision" in own and "artefacts" in own and "onnx" not in own["artefacts"]:
            message = "precision has no effect: the artefacts name theirs"
            self._add((*place, "precision"), message, "leave it out")
        names = [one for one in case.artefacts if one in MADE]
        if len(set(names)) < len(names):
            self._add((*place, "artefacts"), "artefacts names one twice", "leave one of both out")

    def _check_files(self, place: Place, case: Case) -> None:
        """Report paths that are not there, by which any refusal that is expected would be met."""
        if not case.expect.exit or case.expect.cause:
            return
        factory, _, _ = case.options.get("model", "").rpartition(":")
        model = {factory: "model"} if factory.endswith(".py") else {}
        paths = {case.base: "base", **dict.fromkeys(case.adapters, "adapters")}
        for path, key in {**paths, case.artefact: "artefact", **model}.items():
            if path and not path.startswith(PACKAGE) and not Path(path).exists():
                hint = "where that is the refusal that is expected, name its cause in expect"
                self._add((*place, key), f"{key} names no file: {path}", hint)

    def _check_names(self, cases: list[Case]) -> None:
        seen: dict[str, str] = {}
        for case in cases:
            if case.name and case.name in seen:
                message = f"the name {case.name!r} is that of another case"
                hint = f"the other is at {seen[case.name]}"
                self._add(("case", case.place, "name"), message, hint)
            seen.setdefault(case.name, case.where)


_LACKING = {
    "base": 'name it here, in [models.NAME] with use = "NAME", or in [defaults]',
    "adapters": 'write adapters = ["..."]',
}


def _is_alone(table: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Return whether a case names an artefact alone, and defaults give a part of its inputs."""
    is_whole = all(values.get(key) for key in PATHS)
    return "artefact" in table and not is_whole and table.keys().isdisjoint({"use", *PATHS})


def _named_whole(values: Mapping[str, Any], artefacts: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the artefacts by their whole names: the option `precision` is a part of one."""
    whole = f"onnx:{values.get('precision')}"
    named = ("merge",) if artefacts is None else artefacts
    return tuple(whole if one == "onnx" and whole in MADE else one for one in named)
