"""The layout and the precisions in which one call writes a network, checked together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.api.graph.encoder_pair import is_pair
from lora_export.api.graph.forms import Form
from lora_export.errors import UsageError
from lora_export.onnx_export.layout.files_around import check_files_around
from lora_export.onnx_export.layout.genai_config import refuse_without_cache
from lora_export.onnx_export.settings import ExportSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.api.job.planned_job import Job
    from lora_export.onnx_export.capture.captures import Captures
    from lora_export.onnx_export.layout.layouts import Layout
    from lora_export.onnx_export.precision.grids import Precision


_GENERATING = ("text-generation", "text2text-generation")
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""The tasks, and the ends of the names of classes, of networks that generate text."""


def forms_of(
    layout: Layout,
    precisions: Sequence[Precision],
    opset: int | None,
    captures: Captures | None,
    *,
    allow_lossy: bool,
) -> tuple[Form, ...]:
    """Return the form of each file of a network; all are made from one capture."""
    settings = ExportSettings(
        opset, captures, data_name=layout.data_name, dimensions=layout.dimensions
    )
    return tuple(Form(settings, precision, allow_lossy=allow_lossy) for precision in precisions)


def check_forms(layout: Layout, precisions: Sequence[Precision], *, kv_cache: bool) -> None:
    """Refuse precisions and graphs that the layout has no place for.

    Raises:
        UsageError: several precisions in a layout of one file, or a graph without its past for
            onnxruntime-genai.
    """
    if len(precisions) > 1 and layout.name != "hf":
        raise UsageError(
            f"--layout {layout.name} has a place for one precision",
            where=f"--precision {','.join(one.name for one in precisions)}",
            hint="--layout hf holds several; or name one",
            cause="usage/options-contradict",
        )
    if layout.name == "genai" and not kv_cache:
        raise refuse_without_cache()


def layout_warnings(layout: Layout, job: Job) -> tuple[str, ...]:
    """Return a warning where the layout's clients could generate no text from the graph."""
    named = job.plan.base.config.get("architectures")
    names = named if isinstance(named, list) else []
    generates = (
        job.network.task in _GENERATING
        if job.network.task
        else any(str(name).endswith(_HEADS) for name in names)
    )
    if layout.name != "hf" or job.network.kv_cache or not generates:
        return ()
    if job.plan.base.config.get("is_encoder_decoder"):
        why = "the clients' generate() needs encoder and decoder as two files: the graph is both"
        return (why,)
    why = "the graph takes no past, so the clients' generate() would see the last token alone"
    return (f"{why}: --kv-cache makes one that does",)


def check_network(layout: Layout, job: Job) -> None:
    """Refuse a network whose files or graphs the layout's runtime would not find.

    Raises:
        UsageError: the base is no Hugging Face folder, the network an encoder and its decoder, or
            its files lack what the layout needs.
    """
    if not layout.is_folder:
        return
    if not job.plan.base.config or job.source:
        raise UsageError(
            "is for Hugging Face folders: the runtime reads config.json beside the graph",
            where=f"--layout {layout.name}",
            hint="leave --layout out: the output is a bare file",
            cause="usage/options-contradict",
        )
    refuse_pair(layout, job)
    check_files_around(layout, job.plan.side_files)


def refuse_pair(layout: Layout, job: Job) -> None:
    """Refuse a folder of a layout for an encoder and its decoder.

    Raises:
        UsageError: the network is such a pair.
    """
    if layout.is_folder and is_pair(job):
        raise UsageError(
            "has no place for an encoder and its decoder: both graphs pass on keys and values "
            "that its clients do not take",
            where=f"--layout {layout.name}",
            hint="leave --kv-cache out; or --layout: a pair has a folder of two files of its own",
            cause="usage/options-contradict",
        )
