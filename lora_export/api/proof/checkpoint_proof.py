"""The proof of a merged checkpoint: always by weights, and as a model where one can be built."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.api.proof.model_proof import Proven, prove_model
from lora_export.errors import InputError, UsageError, VerificationError
from lora_export.models.choose import folder_model, why_no_model, why_unloadable
from lora_export.models.memory import why_too_large
from lora_export.models.opening import open_model
from lora_export.models.subject import Subject
from lora_export.records import at_level
from lora_export.report.columns import first_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.api.job.planned_job import Job
    from lora_export.api.job.proof_options import ProofOptions
    from lora_export.models.factory import FactoryModel
    from lora_export.records import Check, Checkpoint, Survival


def prove_checkpoint(job: Job, merged: Checkpoint, *, foreign: bool = False) -> Proven:
    """Prove a checkpoint on disk: by weights, by its side files, then as a model.

    foreign: another tool may have written the checkpoint. Its side files are then compared by
    meaning, and not byte by byte.

    Raises:
        UsageError, InputError: the model cannot be built or run as the options demand.
    """
    from lora_export.verification.files.foreign_files import check_foreign_files
    from lora_export.verification.files.side_file_check import check_side_files

    checks, survival, wrong = prove_weights(job, merged)
    notes: tuple[str, ...] = ()
    if job.plan.base.layout == merged.layout == "folder":
        if foreign:
            files, notes = check_foreign_files(job.plan, merged)
        else:
            files = check_side_files(job.plan, merged.root)
        checks = (*checks, *at_level("manifest", files))
    proven = prove_further(job, merged, checks)
    return replace(proven, warnings=(*notes, *proven.warnings), survival=survival, wrong=wrong)


def not_verified(job: Job, *, but: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the warnings of --no-verify. but: options that have an effect without a proof."""
    return ("nothing was verified (--no-verify)", *_unused(job.proof, but))


def _unused(proof: ProofOptions, but: Sequence[str] = ()) -> tuple[str, ...]:
    names = [name for name in proof.given() if name not in but]
    return (f"no model was run, so {', '.join(names)} had no effect",) if names else ()


def prove_further(job: Job, merged: Checkpoint, checks: tuple[Check, ...]) -> Proven:
    """Add the proof as a model to the checks by weights, where the network can be built.

    A model is only run on weights that passed: otherwise its outputs differ for a known reason.

    checks: those by weights and by side files.
    """
    if not all(check.passed for check in checks):
        return Proven(checks, unproven={"model": "the weights are wrong"})
    more = _prove_model(job, merged)
    if job.proof.require and not more.checks:
        raise unproven_model(job, more.unproven["model"])
    unused = _unused(job.proof) if more.unproven and not more.checks else ()
    return replace(more, checks=(*checks, *more.checks), warnings=(*more.warnings, *unused))


def unproven_model(job: Job, why: str) -> VerificationError:
    """Return the error of a model level that is required and cannot be run."""
    message = f"the model level could not be run: {' '.join(why.split())}"
    hint = "leave --require model out to accept a proof by weights"
    return VerificationError(
        message, where=str(job.plan.base.root), hint=hint, cause="verification/not-run"
    )


def why_not_run(job: Job, base: Checkpoint) -> str:
    """Return why the model level is not tried; empty where it is.

    base: the checkpoint whose configuration gives the network its shape.
    """
    if job.proof.proof == "weights":
        return "--proof weights"
    if job.source:
        return "" if job.is_proof_asked else _why_unasked(job, job.source)
    return why_no_model(base, job.network.task) or why_too_large(base)


def _prove_model(job: Job, merged: Checkpoint) -> Proven:
    base = merged if job.plan.reshaped else job.plan.base
    why = why_not_run(job, base)
    if why and job.proof.proof == "weights":
        return Proven(unproven={"model": why})
    if why:
        return _by_weights_only(why)
    if job.source:
        return prove_model(job, Subject(job.source, job.plan, merged)).proven()
    return _prove_folder(job, merged, base)


def _by_weights_only(why: object) -> Proven:
    words = f"the proof is by weights only: {why}"
    return Proven(warnings=(words,), unproven={"model": str(why)})


def prove_weights(
    job: Job, written: Checkpoint
) -> tuple[tuple[Check, ...], Survival | None, frozenset[str] | None]:
    """Return the checks of level "weights", what storing left of the updates, and wrong tensors.

    See verification.weights.whole_weights.check_weights.
    """
    from lora_export.verification.weights.whole_weights import check_weights

    with job.clock("proof by weights", "bytes") as progress:
        checks, survival, wrong = check_weights(
            job.plan, written.tensors(), allow_noop=job.allow_noop, progress=progress
        )
    return at_level("weights", checks), survival, wrong


def _why_unasked(job: Job, source: FactoryModel) -> str:
    """Return why the network of --model is not run unless an option asks; empty where it is."""
    why = source.why_no_inputs()
    if job.unset:
        why = f"neither base nor adapter holds {first_names(job.unset)} of {source.target}"
    return why


def _prove_folder(job: Job, merged: Checkpoint, base: Checkpoint) -> Proven:
    """Prove as the model that the base folder describes, or warn why there is none.

    No option asks for this level. So a base that describes no model, or one of unknown inputs,
    gives a warning and no refusal.

    Raises:
        UsageError: an option describes the run, and the model cannot be run that way.
    """
    try:
        source = folder_model(base, job.proof.input, job.network.task)
        if not job.plan.reshaped:
            open_model(source, base, full=job.plan.new_tensors(), untied=())
    except UsageError as error:
        return _by_weights_only(error.problems[0])
    except InputError as error:
        return _by_weights_only(_unloadable(error.problems[0]))
    try:
        why = why_unloadable(base)
        subject = Subject(source, job.plan, merged)
        return prove_model(job, subject).proven(_unloadable(why) if why else "")
    except UsageError as error:
        if job.is_proof_asked:
            raise  # an option asks for this run, so it may not be left out with a warning
        return _by_weights_only(error.problems[0])


def _unloadable(reason: object) -> str:
    return f"transformers cannot load this base, and so cannot load the result: {reason}"
