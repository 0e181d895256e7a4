"""Edits the text of a JSON object: an edit changes only its value, every other byte stays."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.reading import FLOAT_TAG, parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_MEMBER = re.compile(r'\s*\{(?P<before>\s*)"(?:[^"\\]|\\.)*"(?P<colon>\s*:\s*)', re.DOTALL)


def edit_json(
    content: bytes, edits: Mapping[tuple[str, ...], object], without: Iterable[str] = ()
) -> bytes:
    """Return the text of a JSON object with values set; every other byte stays as it is.

    Args:
        content: the text, in UTF-8.
        edits: values by the keys that lead to them, through objects that are there. A missing
            key is added at the end of the innermost object, in the style of its first member.
        without: top-level members to take out.

    A number that is not finite is written as the text writes others: tagged, as in transformers 5
    (`{"__float__": "Infinity"}`), or as Python's json does (`Infinity`).

    Raises:
        InputError: the content is no JSON object.
    """
    parse_json_object(content, "JSON to edit", unique_keys=False)
    text = _without_members(content.decode(), without)
    form = _Form(is_ascii=content.isascii(), tags_floats=f'"{FLOAT_TAG}"' in text)
    return _edited(text, edits, form).encode()


def _edited(text: str, edits: Mapping[tuple[str, ...], object], form: _Form) -> str:
    """Return the text of one object with the values set, in it and in the objects inside."""
    spans = _value_spans(text)
    style = _Style.of(text, form)
    values = {path[0]: value for path, value in edits.items() if len(path) == 1}
    inside: dict[str, dict[tuple[str, ...], object]] = {}
    for path, value in edits.items():
        if len(path) > 1:
            inside.setdefault(path[0], {})[path[1:]] = value
    added = [style.member(key, value) for key, value in values.items() if key not in spans]
    changed = [(*spans[key], style.value(value)) for key, value in values.items() if key in spans]
    changed += [
        (*spans[key], _edited(text[slice(*spans[key])], part, form)) for key, part in inside.items()
    ]
    if added:
        end = max((end for _, end in spans.values()), default=text.index("{") + 1)
        insertion = ",".join(["", *added] if spans else added)
        changed.append((end, end, insertion if spans else f"{insertion}{style.closing}"))
    for start, end, value in sorted(changed, reverse=True):  # from the end: spans before stay valid
        text = text[:start] + value + text[end:]
    return text


def _without_members(text: str, names: Iterable[str]) -> str:
    """Return the text less these members, each with its comma and space."""
    for name in names:
        spans = list(_value_spans(text).items())
        place = next((n for n, (key, _) in enumerate(spans) if key == name), None)
        if place is None:
            continue
        start = text.index("{") + 1 if place == 0 else spans[place - 1][1][1]
        end = spans[place][1][1]
        if place == 0 and len(spans) > 1:
            end = text.index(",", end) + 1
        text = text[:start] + text[end:]
    return text


def _value_spans(text: str) -> dict[str, tuple[int, int]]:
    """Return where the value of each top-level key begins and ends, in valid JSON of an object."""
    decoder = json.JSONDecoder()
    spans = {}
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = decoder.raw_decode(text, start)
        spans[key] = (start, end)
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return spans


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


@dataclass(frozen=True, slots=True)
class _Form:
    """How a JSON text writes values."""

    is_ascii: bool
    """Characters outside ASCII are escaped."""
    tags_floats: bool
    """Numbers that are not finite are tagged."""

    def tagged(self, value: object) -> object:
        """Return the value with its non-finite numbers tagged, if the text tags them."""
        if isinstance(value, dict):
            return {key: self.tagged(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.tagged(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value) and self.tags_floats:
            return {FLOAT_TAG: json.dumps(value)}
        return value


@dataclass(frozen=True, slots=True)
class _Style:
    """How an object's text lays out its members."""

    before: str
    """What stands before a key: a line break and the indentation, or nothing."""
    colon: str
    """The colon with the space around it."""
    closing: str
    """What stands before the closing brace of an object that was empty."""
    form: _Form

    @classmethod
    def of(cls, text: str, form: _Form) -> _Style:
        """Return the style of the object's first member; two spaces for an empty object."""
        found = _FIRST_MEMBER.match(text)
        if found is None:
            return cls("\n  ", ": ", "\n", form)
        return cls(found["before"], found["colon"], "", form)

    def member(self, key: str, value: object) -> str:
        """Return the text of a new member, with what stands before it."""
        name = json.dumps(key, ensure_ascii=self.form.is_ascii)
        return f"{self.before}{name}{self.colon}{self.value(value)}"

    def value(self, value: object) -> str:
        """Return the text of a value, indented as the members are."""
        line, _, unit = self.before.rpartition("\n")
        indent = unit if "\n" in self.before else None
        written = self.form.tagged(value)
        dumped = json.dumps(written, ensure_ascii=self.form.is_ascii, indent=indent)
        return dumped.replace("\n", f"{line}\n{unit}")
