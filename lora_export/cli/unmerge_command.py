"""The command `lora-export unmerge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.flags import declared, given, output_options


@click.command("unmerge", cls=Command, short_help="Write the base again, byte for byte.")
@click.argument("merged", type=click.Path(path_type=Path))
@declared("unmerge")
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Write the base again, byte for byte, from the MERGED checkpoint and its undo file.

    The restored files must have the base's SHA-256, or nothing is published.
    """
    output = Output.taken_from("unmerge", values)
    settings = given(context, values)

    from lora_export.api import unmerge

    output.run(lambda progress: unmerge(**settings, progress=progress))
