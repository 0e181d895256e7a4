"""lora-export unmerge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.options import jobs_option, option, output_options


@click.command("unmerge", cls=Command, short_help="Write the base again, byte for byte.")
@click.argument("merged", type=click.Path(path_type=Path))
@option(
    "--undo", required=True, type=click.Path(path_type=Path), help="What merge --undo FILE wrote."
)
@option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the base goes."
)
@option("--force", is_flag=True, help="Replace an earlier export.")
@jobs_option
@output_options
def command(**values: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Write the base again, byte for byte, from the MERGED checkpoint and its undo file.

    The restored files must have the base's SHA-256, or nothing is published.
    """
    output = Output.taken_from("unmerge", values)

    from lora_export.api import unmerge

    output.run(lambda progress: unmerge(**values, progress=progress))
