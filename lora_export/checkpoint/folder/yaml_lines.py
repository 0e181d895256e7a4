"""Reads the members at the top of a YAML text, line by line.

This is no YAML reader. Only texts and lists of texts are understood, which cards and litgpt's
settings consist of. Any other value is reported as not understood and never guessed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SPACES = " \t"  # YAML's own white space; a no-break space is a part of the text
_MEMBER = re.compile(r"(?P<key>[A-Za-z_][\w-]*):(?:[ \t]+(?P<value>.*))?", re.ASCII)
_ITEM = re.compile(r"[ \t]*-[ \t]+(?P<value>.*)")
_FLOW = re.compile(r"\[(?P<items>[^\[\]{}\"'#]*)\]")
# A plain scalar. It must not begin with a character of an alias, a tag, a block or a comment.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[^:#\x00-\x1f\x7f]|:(?=[^ \t])|(?<=[^ \t])#)*")
_SINGLE = re.compile(r"'((?:[^']|'')*)'")
# A line that is no member: indented, a comment, an item of a list, or empty.
_BESIDE = re.compile(r"(?:[ \t#]|-[ \t]).*|-|")
_FLOWS = (('"', '"'), ("'", "'"), ("[", "]"), ("{", "}"))
"""How a value that may span lines begins and ends."""


def members_of(lines: Sequence[str]) -> Iterator[tuple[str, str | tuple[str, ...] | None]]:
    """Yield (key, value) of every member at the top; None for a value that is not understood."""
    starts = [number for number, line in enumerate(lines) if _MEMBER.fullmatch(line)]
    for start, end in zip(starts, [*starts, len(lines)][1:], strict=True):
        found = _MEMBER.fullmatch(lines[start])
        if found:
            inside = [line for line in lines[start + 1 : end] if _has_content(line)]
            yield found["key"], _value(found["value"] or "", inside)


def _has_content(line: str) -> bool:
    """Return whether a line is neither blank nor a comment."""
    return bool(line.strip(_SPACES)) and not line.lstrip(_SPACES).startswith("#")


def _value(text: str, inside: Sequence[str]) -> str | tuple[str, ...] | None:
    """Return the value that begins with `text` and goes on in the lines `inside`."""
    text = text.strip(_SPACES)
    if text.startswith("#"):
        text = ""
    if inside:
        items = [_item(line) for line in inside] if not text else [None]
        return _all_known(items)
    if flow := _FLOW.fullmatch(text):
        return _all_known([_scalar(item) for item in flow["items"].split(",") if item.strip()])
    return _scalar(text)


def _all_known(items: Sequence[str | None]) -> tuple[str, ...] | None:
    known = tuple(item for item in items if item is not None)
    return known if known and len(known) == len(items) else None


def _item(line: str) -> str | None:
    found = _ITEM.fullmatch(line)
    return _scalar(found["value"]) if found else None


def _scalar(text: str) -> str | None:
    text = text.strip(_SPACES)
    if single := _SINGLE.fullmatch(text):
        return single[1].replace("''", "'")
    if text.startswith('"'):
        try:
            value = json.loads(text)
        except ValueError:
            return None
        return value if isinstance(value, str) else None
    text = re.split(r"[ \t]#", text, maxsplit=1)[0].rstrip(_SPACES)
    return text if _PLAIN.fullmatch(text) and text.lower() != "null" else None


def are_members(lines: Sequence[str]) -> bool:
    """Return whether the lines can be split into members without a YAML reader.

    Every line must belong to a member, and no quoted or bracketed value may span further members.
    """
    starts = [number for number, line in enumerate(lines) if _MEMBER.fullmatch(line)]
    if not all(_MEMBER.fullmatch(line) or _BESIDE.fullmatch(line) for line in lines):
        return False
    whole = zip(starts, [*starts, len(lines)][1:], strict=True)
    return not any(_is_open(lines[start:end]) for start, end in whole)


def _is_open(lines: Sequence[str]) -> bool:
    """Return whether a member's quoted or bracketed value does not end in its own lines."""
    inside = [line for line in lines[1:] if _has_content(line)]
    value = "\n".join([lines[0], *inside]).partition(":")[2].strip()
    return any(value.startswith(one) and not value[1:].endswith(other) for one, other in _FLOWS)
