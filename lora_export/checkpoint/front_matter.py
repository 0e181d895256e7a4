"""Reads the metadata of a model card: the YAML between the first two lines of dashes.

No YAML reader: only texts and lists of texts are understood, as licence and language are written.
What is written in another way is told as not understood, and never guessed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from lora_export.checkpoint.files import open_for_reading, pread_exact, system_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MAX_BYTES = 1 << 20
_SPACES = " \t"  # YAML's own; a no-break space is a part of the text
_MEMBER = re.compile(r"(?P<key>[A-Za-z_][\w-]*):(?:[ \t]+(?P<value>.*))?", re.ASCII)
_ITEM = re.compile(r"[ \t]*-[ \t]+(?P<value>.*)")
_FLOW = re.compile(r"\[(?P<items>[^\[\]{}\"'#]*)\]")
# No character that begins an alias, a tag, a block, a comment or another structure.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[^:#\x00-\x1f\x7f]|:(?=[^ \t])|(?<=[^ \t])#)*")
_SINGLE = re.compile(r"'((?:[^']|'')*)'")


def read_front_matter(path: Path) -> dict[str, str | tuple[str, ...] | None]:
    """The members at the top of a card's metadata; None for a value that is not understood.

    Empty where there is no such block, or it does not end within the first megabyte.
    """
    with open_for_reading(path) as descriptor, system_errors(path, "read"):
        content = pread_exact(descriptor, MAX_BYTES, 0)
    lines = content.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    ends = [number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"]
    return dict(_members(lines[1 : ends[0]])) if ends else {}


def _members(lines: Sequence[str]) -> Iterator[tuple[str, str | tuple[str, ...] | None]]:
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
