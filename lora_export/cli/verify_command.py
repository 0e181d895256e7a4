"""lora-export verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.flags import declared, given, output_options


@click.command("verify", cls=Command, short_help="Prove a finished ARTIFACT again.")
@click.argument("artifact", type=click.Path(path_type=Path))
@declared("verify")
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Prove a finished ARTIFACT again: a folder, a .safetensors or an .onnx file.

    Without --base and --adapter its files are held against the digests of its manifest. With
    them everything is computed again. Facts that no option gives come from the manifest, and
    are told; --allow-*, --unmerged-base and --tied never do.
    """
    output = Output.taken_from("verify", values)
    settings = given(context, values)

    from lora_export.api import verify

    output.run(lambda _: verify(**settings))
