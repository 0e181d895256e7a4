"""The command `lora-export merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.flags import declared, given, output_options

_FOLDERS = ("max_shard_size", "tokenizer")
"""Options of a base that is a folder."""


@click.command("merge", cls=Command)
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, required=True, type=click.Path(path_type=Path))
@declared("merge")
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Merge ADAPTERS into BASE and write safetensors.

    BASE is a folder, a .safetensors, .pt, .pth or .bin file, or a *.index.json. A file gives a
    file. A folder gives a folder with the same shards and side files, and with a model card.
    Each of the ADAPTERS is a file, or a folder that holds one. Where a folder holds several
    in sub-folders, name the sub-folder. Several adapters are summed from the unmerged base.
    """
    output = Output.taken_from("merge", values)
    settings = given(context, values, unfit=_FOLDERS if _is_weights(values["base"]) else ())

    from lora_export.api import merge

    output.run(lambda progress: merge(**settings, progress=progress))


def _is_weights(base: Path) -> bool:
    """Return whether the base is one file of weights, and not the index of several."""
    return base.suffix != ".json" and base.is_file()
