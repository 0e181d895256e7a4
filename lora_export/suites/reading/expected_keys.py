"""The table `expect` of a case."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from lora_export.errors import LoraExportError, UsageError
from lora_export.planning.folder.sharding import parse_size
from lora_export.records import Problem
from lora_export.suites.suite import Expectation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.toml_file import Place, TomlFile

EXPECT = ("exit", "cause", "sha256", "max_error", "size_below")

STATUSES = (0, *sorted({error.status for error in LoraExportError.__subclasses__()}))
"""The exit statuses that a case may expect: that of a bug is none of them."""


def read_expectation(file: TomlFile, place: Place, table: Any) -> tuple[Expectation, list[Problem]]:
    """Return what a case expects, and the mistakes in its table `expect`."""
    place = (*place, "expect")
    if not isinstance(table, dict):
        return Expectation(), [
            Problem("expect is no table", file.at(*place), "expect = { ... }", cause="usage/suite")
        ]
    problems, right = [], {}
    for key, value in table.items():
        where = file.at(*place, key)
        if key not in EXPECT:
            near = difflib.get_close_matches(key.replace("-", "_"), EXPECT, n=1)
            hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(EXPECT)}"
            problems.append(
                Problem(f"unknown key {key!r}", where, hint, cause="usage/unknown-name")
            )
        elif hint := _WRONG[key](value):
            problems.append(Problem(f"{key} is {value!r}", where, hint, cause="usage/suite"))
        else:
            right[key] = value
    refused = right.get("exit", 0) != 0
    for key in right:
        where = file.at(*place, key)
        if refused and key in _OF_RESULTS:
            message = f"{key} is expected of a result, and exit {right['exit']} gives none"
            problems.append(Problem(message, where, "leave one of both out", cause="usage/suite"))
        if key == "cause" and not refused:
            problems.append(
                Problem("cause is that of a refusal", where, "add exit = ...", cause="usage/suite")
            )
    return _expectation(file, right), problems


_OF_RESULTS = ("sha256", "max_error", "size_below")


def _expectation(file: TomlFile, values: Mapping[str, Any]) -> Expectation:
    given = dict(values)
    if "sha256" in given:
        given["sha256"] = file.path.parent / given["sha256"]
    if "size_below" in given:
        given["size_below"] = size_of(given["size_below"])
    return Expectation(**given)


def size_of(value: int | str) -> int:
    """Return the bytes of a number or of a text such as "30MB".

    Raises:
        UsageError: it is no size.
    """
    return parse_size(str(value))


def _text(value: object) -> str:
    return "" if isinstance(value, str) and value else "it takes a text in quotes"


def _status(value: object) -> str:
    is_one = isinstance(value, int) and not isinstance(value, bool) and value in STATUSES
    return "" if is_one else f"one of: {', '.join(map(str, STATUSES))}"


def _error(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return ""
    return "it takes a number, 0 or more"


def _size(value: object) -> str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return "" if size_of(value) else "it takes a size"
        except UsageError:
            pass
    return 'it takes a size such as "30MB"'


_WRONG: Mapping[str, Callable[[object], str]] = {
    "exit": _status,
    "cause": _text,
    "sha256": _text,
    "max_error": _error,
    "size_below": _size,
}
"""What a value takes; empty where it is right."""
