"""What an export takes on disk and in memory, known before anything is written."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.api.space import float32_bytes, space_for
from lora_export.errors import LimitError
from lora_export.models.memory import available_memory, proof_bytes, whole_bytes
from lora_export.records import FLOAT_DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.api.job.planned_job import Job
    from lora_export.api.space import Space
    from lora_export.onnx_export.precision.grids import Precision
    from lora_export.records import MergePlan

GRAPH = 600 << 20
"""Bytes that an export takes beside Python and torch: libraries, a graph, and blocks of weights."""

_EXPERT = re.compile(r"\.experts\.\d+\.")
"""Occurs in the names of experts that are stored one by one."""

SHARES = {"fp32": 1.0, "fp16": 0.5, "int8": 0.3, "int8-weights": 0.35, "int4": 0.3}
"""About what part of the float32 weights a file holds, by precision; tables stay at 8 bits."""


def needs(job: Job, precisions: Sequence[Precision], output: Path | None, *, verify: bool) -> Space:
    """Return what an export takes: on disk with the merged weights, which lie there meanwhile.

    Args:
        job: the plan, and the user's own network.
        precisions: one for each file.
        output: where it goes; None for no place.
        verify: whether the torch models are run as well.
    """
    space = space_for(job.plan, output)
    shares = sum(SHARES[precision.name] for precision in precisions)
    written = int(shares * float32_bytes(job.plan))
    memory = max(GRAPH + _copied_bytes(job.plan), _torch_bytes(job, verify=verify))
    return replace(space.beside(written), memory=max(space.memory, memory))


def _copied_bytes(plan: MergePlan) -> int:
    """Return the bytes of merged weights that are copied when they are loaded to fill a graph.

    The others stay in their mapped files; see onnx_export.stored_weights. Copied are all weights of
    several dtypes, and experts that are stored one by one.
    """
    specs = [step.out for step in plan.steps() if step.out.dtype in FLOAT_DTYPES]
    if len({spec.dtype for spec in specs}) > 1:
        return 4 * sum(spec.elements for spec in specs)
    return sum(spec.nbytes for spec in specs if _EXPERT.search(spec.name))


def _torch_bytes(job: Job, *, verify: bool) -> int:
    """Return the bytes of the torch models.

    A user's own factory makes a model with weights in memory, in float32, to capture it.
    """
    base = job.plan.base
    own = whole_bytes(base) // 4 + GRAPH if job.source else 0
    runs = verify and job.proof.proof == "model"
    return max(own, proof_bytes(base)) if runs else own


def why_too_large(space: Space) -> str:
    """Return why an export does not fit into memory; empty where it does, or is not known."""
    available = available_memory()
    if available is None or space.memory <= available:
        return ""
    return (
        f"the export takes about {space.memory / 2**30:.1f} GB of memory, "
        f"{available / 2**30:.1f} GB are available"
    )


def refuse_too_large(space: Space, output: Path, *, verify: bool) -> None:
    """Refuse an export for which there is no memory, before the system ends the process.

    Raises:
        LimitError: the machine or a control group has less available than the export takes.
    """
    if why := why_too_large(space):
        hint = "--no-verify runs no torch model" if verify else ""
        raise LimitError(why, where=str(output), hint=hint, cause="limit/memory")
