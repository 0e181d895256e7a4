"""The command `lora-export onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.flags import declared, given, output_options


@click.command("onnx", cls=Command)
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, required=True, type=click.Path(path_type=Path))
@declared("onnx")
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Merge ADAPTERS into BASE and write ONNX.

    The model comes from --model, or from BASE when it is a Hugging Face folder (extra hf). The
    graph is the base's own: merging adds no node. docs/precision.md shows what --precision costs.
    """
    output = Output.taken_from("onnx", values)
    settings = given(context, values)

    from lora_export.api import export_onnx

    output.run(lambda progress: export_onnx(**settings, progress=progress))
