"""The command `lora-export parity`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli._streams import echo, echo_error
from lora_export.cli._terminal import text_width
from lora_export.cli.flags import declared, given, init_options, output_options
from lora_export.options import VERBS
from lora_export.report.columns import counted
from lora_export.report.result import json_text
from lora_export.shown import HINT_MOST, shell_command, shown, shown_line

if TYPE_CHECKING:
    from lora_export.suites.outcome import Row, SuiteResult

_USAGE = "{SUITE | --init BASE ADAPTERS...}"


@click.command("parity", cls=Command, short_help="Run a suite of merges that must hold.")
@click.argument("paths", nargs=-1, required=True, metavar=_USAGE, type=click.Path(path_type=Path))
@declared("parity")
@init_options
@output_options
@click.pass_context
def command(context: click.Context, /, paths: tuple[Path, ...], **values: Any) -> None:
    """Run a suite of merges that must hold: a row for each artefact of each case.

    SUITE is a TOML file (docs/ci.md). Its mistakes are all reported before anything runs. A row
    has the verdict, the worst error in percent of what is allowed, the cause where it does not
    hold, its seconds, and the command that repeats it. Rows that have passed with the same content
    are not run again.

    Exit status: 0 all rows hold, 5 a row fails, 2 the suite has mistakes, 1 a bug of lora-export
    in a row; else the highest status of a row that was refused.
    """
    output = Output.taken_from("parity", values)
    if values.pop("init"):
        _init(context, output, paths, given(context, values, unfit=values.keys() - {"output"}))
    # The variables of options that other commands have too are meant for these.
    shared = {option.name for verb, own in VERBS.items() if verb != "parity" for option in own}
    settings = given(context, values, no_variables=shared)
    if "output" in settings:
        raise click.BadArgumentUsage("-o names the suite that --init writes", context)
    if len(paths) > 1:
        raise click.BadArgumentUsage("one suite at a time", context)

    from lora_export.suites.parity import parity
    from lora_export.suites.printing.github import row_annotations, write_summary
    from lora_export.suites.printing.rows_text import WORDS, time_text

    def shown(row: Row) -> None:
        words = f"{row.case}, {row.artefact}: {WORDS[row.outcome]}"
        echo_error(f"{words} ({time_text(row)})" if time_text(row) else words)

    settings["on_row"] = None if output.quiet else shown
    result = output.value(lambda progress: parity(paths[0], **settings, progress=progress))
    _print(result, output)
    for lost in result.unwritten:
        echo_error(shown_line(f"error: a report could not be written: {lost}", HINT_MOST))
    if note := write_summary(result):
        echo_error(f"note: {note}")
    for line in row_annotations(result):  # on stderr, which GitHub reads too: --json has stdout
        echo_error(line)
    sys.exit(result.status)


def _print(result: SuiteResult, output: Output) -> None:
    from lora_export.suites.outcome import suite_json
    from lora_export.suites.printing.rows_text import suite_text

    if output.as_json:
        echo(json_text(suite_json(result)))
    elif not (output.quiet and result.passed):
        echo(suite_text(result, verbose=output.verbose, width=text_width()))
    elif skipped := sum(row.outcome == "skipped" for row in result.rows):
        echo_error(f"note: {counted(skipped, 'row')} skipped; --strict fails then")


def _init(
    context: click.Context, output: Output, paths: tuple[Path, ...], settings: dict[str, Any]
) -> None:
    """Write a first suite, print the next command, and end."""
    suite = settings.pop("output", Path("parity.toml"))
    if settings:
        raise click.BadArgumentUsage("--init takes -o and no other option", context)
    if len(paths) < 2:
        raise click.BadArgumentUsage(
            "--init BASE ADAPTERS...: name a base and its adapters", context
        )

    from lora_export.suites.reading.first_suite import schema_of, write_first_suite

    missing = output.value(lambda _: write_first_suite(paths[0], paths[1:], suite))
    if output.as_json:
        echo(json_text({"command": "parity", "ok": True, "output": str(suite)}))
    elif not output.quiet:
        words = shell_command(["lora-export", "parity", str(suite)])
        schema = schema_of(suite).name
        echo(f"wrote {shown(str(suite))}, and {shown(schema)} for editors\n\nnext: {words}")
    for fact in missing:
        echo_error(f"note: fill in {fact} first: no file holds it")
    sys.exit(0)
