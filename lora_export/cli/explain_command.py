"""The command `lora-export explain`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.flags import env_option
from lora_export.errors import UsageError
from lora_export.refusals import causes, checks, explanation, statuses
from lora_export.report.result import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.refusals import Entry

_WIDTH = 80


def _completed(_context: click.Context, _param: click.Parameter, start: str) -> list[str]:
    return [name for name in (*causes(), *statuses(), *checks()) if name.startswith(start)]


@click.command("explain", cls=Command, short_help="Explain a refusal, a check or an exit status.")
@click.argument("code", nargs=-1, shell_complete=_completed)
@env_option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/json.md).")
def command(code: tuple[str, ...], as_json: bool) -> None:
    """Explain CODE: what it means, why it is refused, and what to do.

    CODE is what a refusal names, such as fit/no-module. It may be an exit status, such as 5, or
    the name of a check, such as merged elements. Without CODE all of them are listed.
    """
    if not code:
        tables = {"causes": causes(), "exit statuses": statuses(), "checks": checks()}
        entries = [entry for table in tables.values() for entry in table.values()]
        click.echo(_json(entries) if as_json else _listed(tables))
        return
    try:
        entry = explanation(" ".join(code))
    except UsageError as error:
        Output("explain", as_json, quiet=False, verbose=False, debug=False).refuse(error)
    click.echo(_json([entry]) if as_json else _whole(entry))


def _json(entries: Sequence[Entry]) -> str:
    """Return the entries as a JSON object, by their names."""
    found = {entry.name: dict(entry.facts) for entry in entries}
    return json_text({"command": "explain", "ok": True, "explained": found, "error": None})


def _whole(entry: Entry) -> str:
    """Return all of one entry: a line for the name, and a paragraph for each part."""
    parts = [_filled(f"{title}: {text}", "  ") for title, text in entry.facts.items() if text]
    return "\n".join([entry.name, *parts])


def _listed(tables: Mapping[str, Mapping[str, Entry]]) -> str:
    """Return each entry with its first part, under the title of its table."""
    lines = []
    for title, table in tables.items():
        lines.append(f"{title}:")
        for name, entry in table.items():
            lines.append(f"  {name}")
            lines.append(_filled(next(iter(entry.facts.values())), "      "))
    return "\n".join([*lines, "lora-export explain CODE has more of each"])


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
