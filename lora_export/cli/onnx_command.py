"""lora-export onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lora_export.cli._output import Command, Output
from lora_export.cli.options import (
    adapter_options,
    adapter_settings,
    capture_options,
    lossy_option,
    model_options,
    option,
    output_options,
    proof_options,
    provider_option,
    task_option,
)


@click.command("onnx", cls=Command)
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The .onnx to write."
)
@adapter_options
@model_options
@task_option
@option("--opset", type=int, help="ONNX operator set (default: the exporter's own).")
@capture_options
@option(
    "--precision",
    metavar="[fp32|fp16|int8|int8-weights|int4]",
    default="fp32",
    show_default=True,
    help="What is written; a lower one is made from the proven fp32 and proven too.",
)
@lossy_option
@provider_option
@option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Prove in ONNX Runtime before publishing.",
)
@option("--force", is_flag=True, help="Replace an earlier export, and nothing else.")
@output_options
def command(**values: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Merge ADAPTERS into BASE and write ONNX.

    The model comes from --model, or from BASE when it is a Hugging Face folder (extra hf). The
    graph is the base's own: merging adds no node. docs/precision.md says what --precision costs.
    """
    output = Output.taken_from("onnx", values)
    settings, proof = adapter_settings(values), proof_options(values)

    from lora_export.api import export_onnx

    output.run(lambda _: export_onnx(**values, proof=proof, **settings))
