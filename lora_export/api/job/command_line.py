"""The complete command that answers a refusal for want of facts, to copy and fill in."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.options import VERBS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.errors import LoraExportError
    from lora_export.options import Option

_POSITIONAL = ("base", "adapters", "artifact")


def add_command(error: LoraExportError, verb: str, values: Mapping[str, object]) -> None:
    """Let the last problem of `error` name the command with every option that is asked for.

    values: what the verb was called with, by keyword. A missing value stands there as a word in
    capitals, which no option takes: a command that is copied as it is ends in a refusal.
    """
    asked = dict.fromkeys(problem.asks for problem in error.problems if problem.asks)
    if not asked:
        return
    options = {option.name: option for option in VERBS[verb]}
    words = ["lora-export", verb, *_places(values, options)]
    for name, value in values.items():
        if option := options.get(name):
            words += _flags(option, value)
    if values.get("output") is None and "output" in options and not values.get("dry_run"):
        words += ["-o", "OUT"]
    command = f"{shlex.join(words)} {' '.join(asked)}"
    *others, last = error.problems
    hint = f"{last.hint}; " if last.hint else ""
    told = f"{hint}the command, with the values of the training: {command}"
    error.problems = (*others, replace(last, hint=told))


def _places(values: Mapping[str, object], options: Mapping[str, Option]) -> Iterator[str]:
    """The words without a flag: the paths."""
    for name in _POSITIONAL:
        if name in values and name not in options:
            value = values[name]
            yield from map(str, value if isinstance(value, list | tuple) else [value])


def _flags(option: Option, value: object) -> Iterator[str]:
    """The option as it was given; nothing where it has its default."""
    if value is None or value == option.default or (option.many and not value):
        return
    if isinstance(value, bool):
        yield option.flag if value else f"--{option.opposite}"
        return
    flag = f"-{option.short}" if option.short else option.flag
    if option.takes == "blocks" and isinstance(value, list | tuple):
        value = ",".join(str(int(block)) for block in value)
    for item in value if option.many and isinstance(value, list | tuple) else [value]:
        yield from (flag, str(item))
