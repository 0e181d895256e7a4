"""The proof of a merged checkpoint: by weights always, as a model where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.api.proof.memory import why_too_large
from lora_export.api.proof.model_proof import Proven, prove_model
from lora_export.errors import InputError, UsageError
from lora_export.models.choose import folder_model, why_no_model, why_unloadable
from lora_export.models.subject import Subject
from lora_export.records import at_level
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.api.job.planned_job import Job
    from lora_export.api.job.proof_options import ProofOptions
    from lora_export.models.factory import FactoryModel
    from lora_export.records import Check, Checkpoint


def prove_checkpoint(job: Job, merged: Checkpoint, *, foreign: bool = False) -> Proven:
    """The proof of a checkpoint that lies on disk: by weights, then as a model.

    foreign: another tool may have written it, so the files around the weights count by meaning.
    """
    from lora_export.verification.files.foreign_files import check_foreign_files
    from lora_export.verification.files.side_file_check import check_side_files

    checks = prove_weights(job, merged)
    notes: tuple[str, ...] = ()
    if job.plan.base.layout == merged.layout == "folder":
        if foreign:
            files, notes = check_foreign_files(job.plan, merged)
        else:
            files = check_side_files(job.plan, merged.root)
        checks = (*checks, *at_level("manifest", files))
    proven = prove_further(job, merged, checks)
    return replace(proven, warnings=(*notes, *proven.warnings))


def not_verified(job: Job, *, but: Sequence[str] = ()) -> tuple[str, ...]:
    """The warnings of --no-verify. but: options that had their use all the same."""
    return ("nothing was verified (--no-verify)", *_unused(job.proof, but))


def _unused(proof: ProofOptions, but: Sequence[str] = ()) -> tuple[str, ...]:
    names = [name for name in proof.given() if name not in but]
    return (f"no model was run, so {', '.join(names)} had no effect",) if names else ()


def prove_further(job: Job, merged: Checkpoint, checks: tuple[Check, ...]) -> Proven:
    """After the weights, the model where there is one.

    A model is only run on weights that are right.
    """
    if not all(check.passed for check in checks):
        return Proven(checks)
    if job.source:
        why = "" if job.is_proof_asked else _not_run(job, job.source)
        more = (
            Proven(warnings=(why,))
            if why
            else prove_model(job, Subject(job.source, job.plan, merged)).proven()
        )
    else:
        more = _prove_folder(job, merged)
    unused = _unused(job.proof) if more.warnings and not more.checks else ()
    return Proven((*checks, *more.checks), (*more.warnings, *unused), more.attribution)


def prove_weights(job: Job, written: Checkpoint) -> tuple[Check, ...]:
    """Level "weights"; see verification.weights.whole_weights.check_weights."""
    from lora_export.verification.weights.whole_weights import check_weights

    with job.clock("proof by weights"):
        checks = check_weights(job.plan, written.tensors(), allow_noop=job.allow_noop)
    return at_level("weights", checks)


def _not_run(job: Job, source: FactoryModel) -> str:
    """Why the user's network is not run, where nobody asked for it; empty where it is."""
    why = source.why_no_inputs()
    if job.unset:
        why = f"neither base nor adapter holds {first_names(job.unset)} of {source.target}"
    return f"the proof is by weights only: {why}" if why else ""


def _prove_folder(job: Job, merged: Checkpoint) -> Proven:
    """Level "model" where the base folder itself gives a model, else the warning why it does not.

    Nobody asked for this level, so it is told, and not refused, that the base gives no model or
    that its inputs are not known. A base that gives one is a witness like any other.
    """
    base = merged if job.plan.reshaped else job.plan.base
    why = why_no_model(base, job.network.task) or why_too_large(base)
    if why:
        return Proven(warnings=(why,))
    try:
        source = folder_model(base, job.proof.input, job.network.task)
        if not job.plan.reshaped:
            source.load(base, full=job.plan.new_tensors(), untied=())
    except UsageError as error:
        return Proven(warnings=(f"the proof is by weights only: {error.problems[0]}",))
    except InputError as error:
        told = f"{_unloadable(error.problems[0])}; the proof is by weights only"
        return Proven(warnings=(told,))
    try:
        why = why_unloadable(base)
        subject = Subject(source, job.plan, merged)
        return prove_model(job, subject).proven(_unloadable(why) if why else "")
    except UsageError as error:
        if job.is_proof_asked:
            raise  # what the user asked for is not left out in silence
        return Proven(warnings=(f"the proof is by weights only: {error.problems[0]}",))


def _unloadable(reason: object) -> str:
    return f"transformers cannot load this base, so neither the result: {reason}"
