"""Write docs/cli.md from the command tree and the table of exit statuses; --check only compares."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from generated_page import head, write_or_check

from lora_export.cli import main as program
from lora_export.refusals import statuses

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__)
WIDTH = 100  # whatever the terminal's is
AFTER = """
A signal that comes before the result is in place ends the run with 130 or 143. Later the result
stands, and the status is 0. While a library is imported a signal waits, for five seconds at most.

Where stdout cannot be written, a result that was published stands. The status is 7 then, and a
line on stderr gives the reason. A reader of a pipe that stops reading (`| head -1`) is no failure,
and the status stays what it was.
"""


def reference() -> str:
    """Return the whole page."""
    context = click.Context(
        program, info_name="lora-export", terminal_width=WIDTH, **program.context_settings
    )
    parts = [head(SCRIPT, "The command line"), *_command(context, program)]
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        if command and not command.hidden:
            inner = click.Context(
                command, info_name=name, parent=context, **command.context_settings
            )
            parts += [f"\n## lora-export {name}\n\n", *_command(inner, command)]
    parts += ["\n## Exit statuses\n\n", "| status | meaning |\n|---|---|\n"]
    parts += [f"| {one.name} | {one.facts['meaning']} |\n" for one in statuses().values()]
    return "".join([*parts, AFTER])


def _command(context: click.Context, command: click.Command) -> Iterator[str]:
    yield f"```\n{command.get_usage(context)}\n```\n\n"
    yield f"{_paragraphs(command.help)}\n"
    options = [entry for param in command.params if (entry := _option(context, param))]
    if options:
        yield "\n" + "".join(options)


def _paragraphs(text: str | None) -> str:
    """Return click's help text as Markdown: its paragraphs without indentation."""
    return inspect.cleandoc(text or "")


def _option(context: click.Context, param: click.Parameter) -> str:
    declared, meaning = param.get_help_record(context) or ("", "")
    if not meaning.strip():  # an argument, which the usage line shows
        return ""
    variables = [f"`{name}`" for name in _variables(context, param)]
    suffix = f" Environment: {', '.join(variables)}." if variables else ""
    return f"- `{declared}`: {meaning.strip()}{suffix}\n"


def _variables(context: click.Context, param: click.Parameter) -> list[str]:
    """Return the names of the environment variables that set `param`."""
    if isinstance(param.envvar, str):
        return [param.envvar]
    if param.envvar:
        return list(param.envvar)
    taken = isinstance(param, click.Option) and param.allow_from_autoenv and param.expose_value
    if taken and param.name and context.auto_envvar_prefix:
        return [f"{context.auto_envvar_prefix}_{param.name.upper()}"]
    return []


if __name__ == "__main__":
    sys.exit(write_or_check(SCRIPT, SCRIPT.with_name("cli.md"), reference))
