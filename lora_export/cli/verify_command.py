"""The command `lora-export verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.flags import declared, given, output_options


@click.command("verify", cls=Command, short_help="Prove a finished ARTEFACT again.")
@click.argument("artifact", metavar="ARTEFACT", type=click.Path(path_type=Path))
@declared("verify")
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Prove a finished ARTEFACT again: a folder, a .safetensors or an .onnx file.

    Without --base and --adapter its files are compared with the digests of its manifest. With
    them everything is computed again. Facts that no option gives are taken from the manifest,
    and a warning names them. --allow-*, --unmerged-base and --tied are never taken from there.
    """
    output = Output.taken_from("verify", values)
    settings = given(context, values, unfit=["dtype"] if _holds_onnx(values["artifact"]) else [])

    from lora_export.api import verify

    output.run(lambda progress: verify(**settings, progress=progress))


def _holds_onnx(artifact: Path) -> bool:
    """Return whether --precision, and not --dtype, describes the weights of an artefact."""
    places = ("*.onnx", "onnx/*.onnx")  # of a pair, and of a layout
    return artifact.suffix == ".onnx" or any(any(artifact.glob(place)) for place in places)
