"""What the proof of a merge will take, known before anything is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lora_export.api.proof.checkpoint_proof import unproven_model, why_not_run
from lora_export.errors import InputError, UsageError
from lora_export.models.choose import folder_model
from lora_export.models.memory import elements_of, is_large, proof_bytes

if TYPE_CHECKING:
    from lora_export.api.job.planned_job import Job

_SECONDS = 12e-9
"""Processor seconds an element that the witnesses of a large model take, measured on x86."""


def expected_proof(job: Job, *, verify: bool) -> dict[str, Any]:
    """Return the entry of a dry run about the proof.

    Raises:
        VerificationError: the model level is required, and cannot be run.

    Returns:
        `level`, "weights", "model", or "none" without a proof; `not_run`, why not as a model;
        `memory` and `read`, in bytes; `seconds`, about, of a large model alone. The last three are
        of the model level.
    """
    if not verify:
        return not_proven()
    why = _why_not(job)
    if why and job.proof.require:
        raise unproven_model(job, why)
    if why:
        return {"proof": {"level": "weights", "not_run": why}}
    base = job.plan.base
    large = is_large(base)
    entry = {
        "level": "model",
        "not_run": "",
        "memory": proof_bytes(base),
        "read": 2 * sum(ref.length for ref in base.tensors().values()),
        "seconds": round(_SECONDS * elements_of(base) / _processors(), 1) if large else None,
    }
    return {"proof": entry}


def not_proven() -> dict[str, Any]:
    """Return the entry of a dry run with --no-verify."""
    return {"proof": {"level": "none", "not_run": "--no-verify"}}


def _why_not(job: Job) -> str:
    base = job.plan.base
    why = why_not_run(job, base)
    if why or job.source:
        return why
    try:
        _ = folder_model(base, job.proof.input, job.network.task).inputs
    except (InputError, UsageError) as error:
        return error.problems[0].message
    return ""


def _processors() -> int:
    """Return how many processors share the work; products of few tokens use few of them."""
    return min(os.cpu_count() or 1, 4)
