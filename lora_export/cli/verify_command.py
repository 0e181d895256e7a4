"""lora-export verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lora_export.cli._output import Command, Output
from lora_export.cli.options import (
    adapter_options,
    adapter_settings,
    capture_options,
    given_only,
    lossy_option,
    model_options,
    option,
    output_options,
    proof_options,
    provider_option,
    task_option,
)


@click.command("verify", cls=Command, short_help="Prove a finished ARTIFACT again.")
@click.argument("artifact", type=click.Path(path_type=Path))
@option("--base", type=click.Path(path_type=Path), help="What it was merged from.")
@option(
    "--adapter", "adapters", multiple=True, type=click.Path(path_type=Path),
    help="What was merged into it; once for each.",
)  # fmt: skip
@adapter_options
@model_options
@task_option
@option("--opset", type=int, help="The operator set an .onnx was written in.")
@option("--precision", metavar="NAME", help="That of an .onnx (default: by its manifest, or fp32).")
@lossy_option
@provider_option
@capture_options
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:  # noqa: ANN401
    """Prove a finished ARTIFACT again: a folder, a .safetensors or an .onnx file.

    Without --base and --adapter its files are held against the digests of its manifest. With
    them everything is computed again. Facts that no option gives come from the manifest, and
    are told; --allow-*, --unmerged-base and --tied never do.
    """
    output = Output.taken_from("verify", values)
    defaults = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    given = [name for name in values if context.get_parameter_source(name) not in defaults]
    settings = given_only(adapter_settings(values), given)
    proof = proof_options(values)

    from lora_export.api import verify

    output.run(lambda _: verify(**values, proof=proof, **settings))
