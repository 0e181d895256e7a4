"""The findings of `inspect` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.columns import WIDTH, first_names, first_rows, laid_out
from lora_export.shown import shown_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_TITLES = {
    "full_tensors": "full tensors, which take the place of the base's",
    "beside": "other weight files in the folder, which are merged as well",
}


def found_text(found: Mapping[str, Any], *, verbose: bool, width: int = WIDTH) -> str:
    """Return the findings as lines; modules and tensors are rows under a heading."""
    lines: list[str] = []
    for key, value in found.items():
        lines += _entry(key, value, verbose=verbose, width=width)
    return shown_lines(lines)


def _entry(key: str, value: Any, *, verbose: bool, width: int) -> list[str]:
    title = _TITLES.get(key, key.replace("_", " "))
    if words := _WORDS.get(key):
        return words(value)
    if key == "groups":
        return ["groups:", *laid_out([_group(group) for group in value], width)] if value else []
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{title}: {len(value)}", *_table(value, verbose=verbose, width=width)]
    return [f"{title}: {_plain(value)}"]


def _base(base: Mapping[str, Any]) -> list[str]:
    """Return the base that an adapter names, and where it is."""
    found = base["found"]
    revision = f" at revision {base['revision']}" if "revision" in base else ""
    if found is None:
        return [f"base: {base['name']}{revision}, found neither beside it nor in the local cache"]
    return [f"base: {base['name']}{revision}" + (f", at {found}" if found != base["name"] else "")]


def _manifest(manifest: Mapping[str, Any]) -> list[str]:
    return [f"manifest: made by {manifest.get('command')}, recipe {manifest.get('recipe')}"]


_WORDS: dict[str, Callable[[Any], list[str]]] = {
    "base": _base,
    "manifest": _manifest,
    "notes": lambda notes: [f"note: {note}" for note in notes],
    "contradictions": lambda faults: [f"contradiction: {fault}" for fault in faults],
    "wrapper": lambda wrapper: [f"read from its {wrapper!r}"] if wrapper else [],
}
"""The lines of entries that are not shown as `title: value`."""


def _group(group: Mapping[str, Any]) -> Sequence[str]:
    alpha, scaling = group["alpha"], group["scaling"]
    return (
        f"{group['number']:,} x {group['tuner']}",
        "" if group["rank"] is None else f"r={group['rank']}",
        "alpha unknown" if alpha is None else f"alpha={alpha:g}",
        "" if scaling is None else f"scaling={scaling:g}",
        f"({first_names(group['names'], 6)})",
    )


def _table(entries: Sequence[Mapping[str, Any]], *, verbose: bool, width: int) -> list[str]:
    heading = [key.replace("_", " ") for key in entries[0]]
    rows = [[_plain(cell) for cell in entry.values()] for entry in entries]
    return first_rows(rows, verbose=verbose, heading=heading, width=width)


def _plain(value: object) -> str:
    """Return a value without quotes; only a shape keeps its brackets."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return str(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
