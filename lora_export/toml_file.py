"""Read a TOML file of the user's with the line of every key, which tomllib does not give."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_export.errors import InputError, StorageError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from lora_export.shown import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class TomlFile:
    """A document, and where its keys are."""

    path: Path
    content: Mapping[str, Any]
    """The document as tomllib reads it."""
    lines: Mapping[Place, int]
    """The line of every key and table, from 1; a table of an array is (name, index)."""

    def at(self, *place: str | int) -> str:
        """Return `FILE:LINE` of a key, or of the innermost table around it that has a line."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.path}:{self.lines[place]}" if place else str(self.path)


def read_toml(path: Path) -> TomlFile:
    """Read a TOML file.

    Raises:
        InputError: there is no such file, it is no text in UTF-8, or it is longer than 1 MB.
        UsageError: it is no TOML; the message has line and column.
        StorageError: the system refuses to read it.
    """
    try:
        data = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise StorageError(
            error.strerror or str(error), where=str(path), cause="storage/refused"
        ) from error
    if data is None:
        raise InputError("no such file", where=str(path), cause="input/missing-file")
    if len(data) > _MOST:
        raise InputError(
            "a TOML file of more than 1 MB is no file of options",
            where=str(path),
            cause="input/text-file",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("is no text in UTF-8", where=str(path), cause="input/text-file") from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"is no TOML: {reason_of(error)}", where=str(path), cause="usage/toml"
        ) from error
    return TomlFile(path, content, _lines(text))


_MOST = 1 << 20
"""Bytes of a file; finding the lines of a longer one takes seconds."""


def _lines(text: str) -> dict[Place, int]:
    """Return the line of every key and table of a document that tomllib accepts."""
    found: dict[Place, int] = {}
    lengths: dict[Place, int] = {}  # of arrays of tables, as far as they are read
    table: Place = ()
    for line, statement, is_header in _statements(text):
        keys = [*_keys(statement, ())]
        if not is_header:
            found.update({(*table, *place): line for place in keys})
            continue
        table = ()
        names = [key for key in keys[-1] if isinstance(key, str)]
        is_array = len(keys[-1]) > len(names)
        for name in names:
            table = (*table, name)
            found.setdefault(table, line)
            if table in lengths and not (is_array and len(names) == _depth(table)):
                table = (*table, lengths[table] - 1)
        if is_array:
            lengths[table] = lengths.get(table, 0) + 1
            table = (*table, lengths[table] - 1)
        found[table] = line
    return found


def _depth(place: Place) -> int:
    return sum(isinstance(key, str) for key in place)


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Yield (line, what it says, whether it is a table's header) of every statement.

    A statement is the shortest run of lines that tomllib accepts by itself: no part of a value
    that goes over several lines is TOML.
    """
    pending, begun = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        if not pending:
            begun = number
        pending += f"{line}\n"
        try:
            statement = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue
        if statement:
            yield begun, statement, pending.lstrip().startswith("[")
        pending = ""


def _keys(value: object, place: Place) -> Iterator[Place]:
    """Yield the place of everything inside a value, depth first."""
    inside: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        inside = iter(value.items())
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        inside = iter(enumerate(value))
    for key, item in inside:
        yield (*place, key)
        yield from _keys(item, (*place, key))
