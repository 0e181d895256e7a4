"""Options in a table of a user's TOML file: from command-line names to keywords, or all problems.

A file of `--config` and a suite of merges hold the same options by the same names. Both check them
here, so that both refuse the same mistakes in the same words.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from lora_export.options import Option, Takes
    from lora_export.toml_file import Place, TomlFile

_WORDS: Mapping[Takes, str] = {
    "text": "a text in quotes",
    "path": "a path in quotes",
    "factory": "a text in quotes",
    "number": "a number",
    "whole": "a whole number",
    "flag": "true or false",
    "either": "true or false",
    "choice": "a text in quotes",
    "blocks": 'a text such as "1,0,1", or a list of true and false, one of them true',
}


def read_options(
    file: TomlFile,
    place: Place,
    options: Sequence[Option],
    *,
    others: Collection[str] = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the values of a table's options by keyword, and every mistake in the table.

    A path is relative to the folder of the file. An option that may be given several times takes a
    list, or one value.

    Args:
        file: the document.
        place: the keys that lead to the table; () is the document itself.
        options: what the table may hold; the first of a name counts.
        others: further keys of the table, which the caller reads. A mistyped key may mean them.

    Returns:
        (values by the options' keywords, problems with `FILE:LINE`).
    """
    table: Any = file.content
    for key in place:
        table = table[key]
    named = {name: found for option in reversed(options) for name, found in _names(option)}
    values: dict[str, Any] = {}
    first: dict[str, str] = {}  # the key that set a keyword
    problems: list[Problem] = []
    for key, value in table.items():
        if key in others:
            continue
        where = file.at(*place, key)
        if key not in named:
            problems.append(
                Problem(
                    f"unknown key {key!r}",
                    where,
                    _meant(key, named, others),
                    cause="usage/unknown-name",
                )
            )
            continue
        option, opposite = named[key]
        if option.name in first:
            message = f"{key} and {first[option.name]} are one option"
            problems.append(
                Problem(message, where, "leave one of both out", cause="usage/options-contradict")
            )
        elif wrong := _wrong(option, value):
            problems.append(
                Problem(f"{key} is {_shown(value)}", where, wrong, cause="usage/option-value")
            )
        else:
            first[option.name] = key
            values[option.name] = _keyword(option, value, file.path.parent, opposite=opposite)
    return values, problems


def _names(option: Option) -> Iterator[tuple[str, tuple[Option, bool]]]:
    """Yield the keys that set an option, and whether each means the opposite."""
    yield option.flag.removeprefix("--"), (option, False)
    if option.opposite:
        yield option.opposite, (option, True)


def _meant(key: str, named: Collection[str], others: Collection[str]) -> str:
    known = [*named, *others]
    near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
    near = near or difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"one of: {', '.join(sorted(known))}"


def _shown(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _wrong(option: Option, value: object) -> str:
    """Return what an option takes; empty where the value is that."""
    items: list[Any] = value if option.many and isinstance(value, list) else [value]
    if not all(_FITS[option.takes](item) for item in items):
        words = _WORDS[option.takes]
        return f"it takes {words}" + (", or a list of these" if option.many else "")
    if option.choices and value not in option.choices:
        near = difflib.get_close_matches(str(value), option.choices, n=1)
        return f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(option.choices)}"
    if option.least is not None and any(item < option.least for item in items):
        return f"it takes {option.least} or more"
    return ""


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_blocks(value: object) -> bool:
    if isinstance(value, list):
        return all(item in (0, 1) for item in value) and any(value)
    return _is_text(value)


_FITS: Mapping[Takes, Callable[[Any], bool]] = {
    "text": _is_text,
    "path": _is_text,
    "factory": _is_text,
    "number": _is_number,
    "whole": _is_whole,
    "flag": _is_flag,
    "either": _is_flag,
    "choice": _is_text,
    "blocks": _is_blocks,
}


def _keyword(option: Option, value: Any, folder: Path, *, opposite: bool) -> Any:
    """Return a right value as the keyword of the library takes it."""
    if option.many:
        return tuple(_one(option, item, folder) for item in _listed(value))
    if option.takes in ("flag", "either"):
        return value is not opposite
    return _one(option, value, folder)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one(option: Option, value: Any, folder: Path) -> Any:
    if option.takes == "path":
        return folder / Path(value).expanduser()
    if option.takes == "factory":
        place, _, name = value.rpartition(":")
        return f"{folder / Path(place).expanduser()}:{name}" if place.endswith(".py") else value
    if option.takes == "blocks" and isinstance(value, list):
        return ",".join(str(int(block)) for block in value)
    return value
