"""The members at the top of a YAML text, line by line.

No YAML reader: only texts and lists of texts are understood, as cards and litgpt's settings have
them. What is written in another way is told as not understood, and never guessed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SPACES = " \t"  # YAML's own; a no-break space is a part of the text
_MEMBER = re.compile(r"(?P<key>[A-Za-z_][\w-]*):(?:[ \t]+(?P<value>.*))?", re.ASCII)
_ITEM = re.compile(r"[ \t]*-[ \t]+(?P<value>.*)")
_FLOW = re.compile(r"\[(?P<items>[^\[\]{}\"'#]*)\]")
# No character that begins an alias, a tag, a block, a comment or another structure.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[^:#\x00-\x1f\x7f]|:(?=[^ \t])|(?<=[^ \t])#)*")
_SINGLE = re.compile(r"'((?:[^']|'')*)'")
# What may stand at the beginning of a line beside a member: an item of its list, a comment.
_BESIDE = re.compile(r"(?:[ \t#]|-[ \t]).*|-|")
_FLOWS = (('"', '"'), ("'", "'"), ("[", "]"), ("{", "}"))


def members_of(lines: Sequence[str]) -> Iterator[tuple[str, str | tuple[str, ...] | None]]:
    """(key, value) of every member; None for a value that is not understood."""
    starts = [number for number, line in enumerate(lines) if _MEMBER.fullmatch(line)]
    for start, end in zip(starts, [*starts, len(lines)][1:], strict=True):
        found = _MEMBER.fullmatch(lines[start])
        if found:
            inside = [line for line in lines[start + 1 : end] if _says_something(line)]
            yield found["key"], _value(found["value"] or "", inside)


def _says_something(line: str) -> bool:
    return bool(line.strip(_SPACES)) and not line.lstrip(_SPACES).startswith("#")


def _value(text: str, inside: Sequence[str]) -> str | tuple[str, ...] | None:
    """The value that begins behind the colon as `text`, and goes on in the lines `inside`."""
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
    """Whether every line belongs to a member, and no value may hide a member in its next lines."""
    starts = [number for number, line in enumerate(lines) if _MEMBER.fullmatch(line)]
    if not all(_MEMBER.fullmatch(line) or _BESIDE.fullmatch(line) for line in lines):
        return False
    whole = zip(starts, [*starts, len(lines)][1:], strict=True)
    return not any(_is_open(lines[start:end]) for start, end in whole)


def _is_open(lines: Sequence[str]) -> bool:
    """A quoted or bracketed value that ends in the lines of a later member."""
    inside = [line for line in lines[1:] if _says_something(line)]
    value = "\n".join([lines[0], *inside]).partition(":")[2].strip()
    return any(value.startswith(one) and not value[1:].endswith(other) for one, other in _FLOWS)
