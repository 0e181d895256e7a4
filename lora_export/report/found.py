"""The findings of `inspect` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.columns import first_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TITLES = {
    "full_tensors": "full tensors, which take the place of the base's",
    "beside": "other weight files in the folder, which are merged as well",
}


def found_text(found: Mapping[str, Any], *, verbose: bool) -> str:
    """Return the findings as lines; modules and tensors are rows under a heading."""
    lines: list[str] = []
    for key, value in found.items():
        title = _TITLES.get(key, key.replace("_", " "))
        if key == "manifest":
            lines.append(f"manifest: made by {value.get('command')}, recipe {value.get('recipe')}")
        elif key == "notes":
            lines += [f"note: {note}" for note in value]
        elif key == "wrapper":
            lines += [f"read from its {value!r}"] if value else []
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{title}: {len(value)}", *_table(value, verbose=verbose)]
        else:
            lines.append(f"{title}: {_plain(value)}")
    return "\n".join(lines)


def _table(entries: Sequence[Mapping[str, Any]], *, verbose: bool) -> list[str]:
    heading = [key.replace("_", " ") for key in entries[0]]
    rows = [[_plain(cell) for cell in entry.values()] for entry in entries]
    return first_rows(rows, verbose=verbose, heading=heading)


def _plain(value: object) -> str:
    """Return a value without quotes; only a shape keeps its brackets."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return str(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
