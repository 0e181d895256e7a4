"""The command `lora-export inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.flags import output_options


@click.command("inspect", cls=Command, short_help="Report what a file or folder holds.")
@click.argument("path", type=click.Path(path_type=Path))
@output_options
def command(path: Path, **values: Any) -> None:
    """Report what an adapter, a checkpoint or an artefact holds, from headers alone."""
    output = Output.taken_from("inspect", values)

    from lora_export.api import inspect

    output.run(lambda _: inspect(path))
