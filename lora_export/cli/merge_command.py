"""lora-export merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.options import (
    adapter_options,
    adapter_settings,
    jobs_option,
    model_options,
    option,
    output_options,
    proof_options,
)


@click.command("merge", cls=Command)
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("-o", "--output", type=click.Path(path_type=Path), help="The file or folder to write.")
@adapter_options
@model_options
@option("--verify/--no-verify", default=True, show_default=True, help="Prove before publishing.")
@option("--dry-run", is_flag=True, help="Print the plan and the room it needs; write nothing.")
@option("--force", is_flag=True, help="Replace an earlier export, and nothing else.")
@option(
    "--undo",
    type=click.Path(path_type=Path),
    help="Keep what the merge changes in this file, for lora-export unmerge.",
)
@option(
    "--tokenizer",
    type=click.Choice(["base", "adapter"]),
    help="Whose tokenizer a folder gets (default: the base's, unless the vocabulary grew).",
)
@option("--max-shard-size", metavar="SIZE", help="Lay a folder out in new shards, e.g. of 5GB.")
@jobs_option
@output_options
def command(**values: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Merge ADAPTERS into BASE and write safetensors.

    BASE is a folder, a .safetensors, .pt, .pth or .bin file, or a *.index.json. A file gives a
    file, a folder gives a folder with the same shards and side files, and with a model card.
    Each of the ADAPTERS is a file, or a folder that holds one; of several in sub-folders,
    name the sub-folder. Several adapters are summed from the unmerged base.
    """
    output = Output.taken_from("merge", values)
    settings, proof = adapter_settings(values), proof_options(values)
    settings["tokenizer"] = values.pop("tokenizer")

    from lora_export.api import merge

    output.run(lambda progress: merge(**values, progress=progress, proof=proof, **settings))
