"""The proof of one ONNX file: against both torch models, by its static audit, in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lora_export.api.proof.model_proof import SEARCH, Proven, prove_model
from lora_export.api.proof.overhead import saved
from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.records import at_level

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.api.job.planned_job import Job
    from lora_export.api.proof.model_proof import ModelProof
    from lora_export.models.subject import Subject
    from lora_export.onnx_export.export import Exported
    from lora_export.records import Check
    from lora_export.verification.blame.narrowing import Artifact
    from lora_export.verification.runtime.sessions import Opener


def prove_file(
    path: Path,
    exported: Exported,
    job: Job,
    subject: Subject,
    *,
    opener: Opener | None = None,
    linked: bool = False,
) -> Proven:
    """Prove one ONNX file: the torch models, the file's static audit, then ONNX Runtime.

    Args:
        path: the .onnx file.
        exported: the export that the file must equal.
        job: the job that it was made by.
        subject: the network with its base and merged weights.
        opener: opens the session on the file; None takes the one of
            verification.runtime.sessions, with the user's providers.
        linked: the file is not published, and refers to the merged weights themselves; see
            onnx_export.file.linked. Only whether it can be read is audited.

    Raises:
        FitError, UsageError, InputError: the torch model cannot be built or run.
    """
    from lora_export.onnx_export.file.audit import audit, check_readable
    from lora_export.verification.blame.attribution import blame
    from lora_export.verification.blame.narrowing import Artifact, attribute_file
    from lora_export.verification.runtime.sessions import find_providers, opener_on

    weights, topology = exported.weights, exported.topology
    if job.proof.proof == "weights":
        static = audit(path, expected=weights, base=topology, inputs=exported.inputs)
        left_out = dict.fromkeys(("model", "runtime"), "--proof weights")
        return Proven(at_level("file", static), unproven=left_out)
    # One after the other, so that only one of the three has its weights in memory at a time.
    by_model = prove_model(job, subject)
    with job.clock("static audit"):
        static = (
            check_readable(path)
            if linked
            else audit(path, expected=weights, base=topology, inputs=exported.inputs)
        )
    checks = (*by_model.checks, *at_level("file", static))
    artifact = Artifact(
        path, by_model.tolerance, opener or opener_on(find_providers(job.proof.provider))
    )
    if all(check.passed for check in static[:2]):  # the first two: the file is readable and valid
        checks = (*checks, *_prove_runtime(artifact, by_model, job))
    if not all(check.passed for check in by_model.checks):
        attribution = by_model.proven().attribution
        return Proven(
            checks,
            by_model.warnings,
            attribution,
            kept=by_model.kept,
            unproven=by_model.unproven,
            facts=by_model.facts,
        )
    find = partial(attribute_file, by_model.suspects, artifact)
    found = blame(checks, job.clock.around(SEARCH, find))
    with job.clock("overhead"):
        extra = None if found else saved(job.plan, by_model.witnesses.sites, exported.beside)
    return Proven(
        checks,
        by_model.warnings,
        found,
        extra,
        by_model.kept,
        unproven=by_model.unproven,
        facts=by_model.facts,
    )


def _prove_runtime(artifact: Artifact, by_model: ModelProof, job: Job) -> tuple[Check, ...]:
    """Compare ONNX Runtime with both torch models; with --kv-cache also the generated tokens."""
    from lora_export.verification.runtime.generation import check_generation
    from lora_export.verification.runtime.sessions import try_model

    seen, tolerance = by_model.witnesses, by_model.tolerance
    with job.clock("runtime"):
        outputs, refusal = try_model(artifact.path, by_model.suspects.probes, artifact.opener)
    if refusal:
        return at_level("runtime", [refusal])
    checks = [tolerance.check("ONNX Runtime = merged", seen.merged, outputs)]
    if not job.plan.coupled:
        name, unmerged = seen.as_stored()
        checks.append(tolerance.check(f"ONNX Runtime = {name}", unmerged, outputs))
    subject = by_model.suspects.subject
    if isinstance(subject.source, CachedDecoder):
        with job.clock("generation"):
            model = replace(subject, source=subject.source.plain).open()
            checks += check_generation(
                artifact.path,
                subject.source,
                model,
                tolerance,
                seed=job.proof.seed,
                opener=artifact.opener,
            )
    return at_level("runtime", checks)
