"""A call as the words of a command: for the next one, and for a refusal that lacks facts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from lora_export.options import VERBS
from lora_export.shown import shell_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.errors import LoraExportError
    from lora_export.options import Option

_POSITIONAL = ("base", "adapters", "artifact", "path")


def add_command(error: LoraExportError, verb: str, values: Mapping[str, object]) -> None:
    """Add to the last problem of `error` the command with every option that is missing.

    Where base and adapter are swapped, it is the command with both in their order. A missing value
    is a word in capitals, which no option accepts. So a command that is copied and not filled in is
    refused.

    values: the arguments of the call, by keyword.
    """
    asked = dict.fromkeys(problem.asks for problem in error.problems if problem.asks)
    is_swapped = error.problems[-1].cause == "usage/swapped" and _is_pair(values)
    if not asked and not is_swapped:
        return
    if is_swapped:
        (first,) = cast("Sequence[object]", values["adapters"])
        values = {**values, "base": first, "adapters": [values["base"]]}
    options = {option.name: option for option in VERBS[verb]}
    words = command_words(verb, values)
    if values.get("output") is None and "output" in options and not values.get("dry_run"):
        words += ["-o", "OUT"]
    command = " ".join([shell_command(words), *asked])
    *others, last = error.problems
    if is_swapped:
        error.problems = (*others, replace(last, hint=command))
        return
    hint = f"{last.hint}; " if last.hint else ""
    hint = f"{hint}the command, with the values of the training: {command}"
    error.problems = (*others, replace(last, hint=hint))


def _is_pair(values: Mapping[str, object]) -> bool:
    """Return whether a call names one base and one adapter."""
    adapters = values.get("adapters")
    return "base" in values and isinstance(adapters, list | tuple) and len(adapters) == 1


def command_words(verb: str, values: Mapping[str, object]) -> list[str]:
    """Return the words of the command that does what the call does, not quoted.

    values: the arguments of the call, by keyword; one that has its default is left out.
    """
    options = {option.name: option for option in VERBS[verb]}
    words = ["lora-export", verb, *_places(values, options)]
    for name, value in values.items():
        if option := options.get(name):
            words += _flags(option, value)
    return words


def _places(values: Mapping[str, object], options: Mapping[str, Option]) -> Iterator[str]:
    """Yield the words without a flag: the paths."""
    for name in _POSITIONAL:
        if name in values and name not in options:
            value = values[name]
            for path in value if isinstance(value, list | tuple) else [value]:
                # A path that begins with a hyphen would be read as an option.
                yield f"./{path}" if str(path).startswith("-") else str(path)


def _flags(option: Option, value: object) -> Iterator[str]:
    """Yield the words of an option; none where it has its default."""
    if value is None or value == option.default or (option.many and not value):
        return
    if isinstance(value, bool):
        yield option.flag if value else f"--{option.opposite}"
        return
    flag = f"-{option.short}" if option.short else option.flag
    if option.takes == "blocks" and isinstance(value, list | tuple):
        value = ",".join(str(int(block)) for block in value)
    for item in value if option.many and isinstance(value, list | tuple) else [value]:
        yield from (flag, _text(item))


def _text(value: object) -> str:
    """Return a value as a user writes it: `32`, and not `32.0`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
