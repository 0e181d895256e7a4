"""onnx: base and adapters in, one proven ONNX file out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.api.lowering import (
    Form,
    Full,
    full_proof,
    lossy_warnings,
    lower_into,
    recorded_graph,
)
from lora_export.api.overhead import saved
from lora_export.api.proving import (
    Proven,
    make_job,
    not_verified,
    prove_model,
    prove_weights,
)
from lora_export.api.recording import build_manifest, input_paths
from lora_export.api.space import refuse_too_little, space_for
from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.publish import staging
from lora_export.checkpoint.side_files import manifest_beside
from lora_export.checkpoint.writer import write_bytes
from lora_export.models.choose import folder_model
from lora_export.onnx_export.captures import open_captures
from lora_export.records import at_level
from lora_export.report.result import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Unpack

    from lora_export.api.proving import Job, ModelProof, ProofOptions
    from lora_export.checkpoint.publish import Staging
    from lora_export.models.source import ModelSource
    from lora_export.onnx_export.export import Exported
    from lora_export.planning.request import AdapterOptions
    from lora_export.records import Check, Checkpoint
    from lora_export.verification.narrowing import Artifact
    from lora_export.verification.runtime import Opener


def export_onnx(
    base: str | Path,
    adapters: Sequence[str | Path],
    output: str | Path,
    *,
    model: str | None = None,
    task: str | None = None,
    opset: int | None = None,
    precision: str = "fp32",
    allow_lossy: bool = False,
    verify: bool = True,
    force: bool = False,
    capture_cache: str | Path | None = None,
    no_capture_cache: bool = False,
    proof: ProofOptions | None = None,
    **settings: Unpack[AdapterOptions],
) -> Report:
    """Write the merged model as ONNX, and prove it in ONNX Runtime against both torch models.

    Args:
        base: a folder, a weight file, or a shard index.
        adapters: loralib files; several are summed from the unmerged base.
        output: the .onnx file; must not exist unless `force`.
        model: the user's factory; without it `base` must be a Hugging Face folder (extra hf).
        task: the folder's model is of transformers' class for it ("text-classification", ...), and
            not of the class that config.json names.
        opset: ONNX operator set; None takes the exporter's own.
        precision: fp32, fp16, int8, int8-weights or int4; the lower ones are made from the float32
            file, which is proven first and not published.
        allow_lossy: accept a lower precision whose rounding outweighs the adapter.
        verify: prove by weights, as a model, in ONNX Runtime and by the static audit.
        force: replace an earlier export at `output`.
        capture_cache: the folder in which captured graphs of Hugging Face folders are kept; None
            takes the usual one, see onnx_export.captures.
        no_capture_cache: capture anew, and keep nothing.
        proof: how the models are run to be proven.
        settings: see planning.request.AdapterOptions.

    Raises:
        LoraExportError: as for merge.
    """
    from lora_export.onnx_export.precision import find_precision
    from lora_export.onnx_export.trace import check_opset

    lower = find_precision(precision)
    check_opset(opset)
    if proof:
        proof.check()
    job = make_job(base, adapters, model=model, task=task, proof=proof, settings=settings)
    if not job.plan.reshaped:
        with job.clock("plan"):
            traced_model(job, job.plan.base)  # what cannot be built is refused before all else
    captures = open_captures(capture_cache, off=no_capture_cache)
    form = Form(lower, opset, captures, allow_lossy=allow_lossy)
    target = Path(output)
    beside = (manifest_beside(target),)
    inputs = input_paths(job.plan)
    with staging(target, force=force, inputs=inputs, kind="file", beside=beside) as stage:
        report = _export_into(stage, job, form, verify=verify)
    return replace(report, output=str(target))


def traced_model(job: Job, merged: Checkpoint) -> ModelSource:
    """The user's model, or the folder's: the result's own where the adapter changes its shape."""
    if job.source:
        return job.source
    return folder_model(merged if job.plan.reshaped else job.plan.base, job.proof.input, job.task)


def _export_into(stage: Staging, job: Job, form: Form, *, verify: bool) -> Report:
    from lora_export.execution.digests import hash_files
    from lora_export.onnx_export.export import export
    from lora_export.verification.proof import refuse_failed

    space = space_for(job.plan, stage.output)
    refuse_too_little(space, stage.output)
    work = stage.folder / "work"
    work.mkdir()
    merged = merged_checkpoint(job, work / "merged")
    source = traced_model(job, merged)
    proven = Proven(warnings=not_verified(job, but=["--input"]))
    if verify:
        proven = Proven(prove_weights(job, merged))
        refuse_failed(proven.checks, str(stage.output))
    place = (work if form.is_lowered else stage.folder) / stage.path.name
    exported = export(
        source, job.plan, merged, place, opset=form.opset, captures=form.captures, clock=job.clock
    )
    if verify:
        by_weights = proven.checks
        proven = prove_file(place, exported, full_proof(job, form), source, merged)
        proven = replace(proven, checks=(*by_weights, *proven.checks))
        refuse_failed(proven.checks, str(stage.output), proven.attribution)
    files, facts = exported.files, {"graph": graph_facts(exported, proven.saved)}
    if form.is_lowered:
        full = Full(job, source, merged, exported, place)
        files, more, facts = lower_into(stage.path, full, form, verify=verify)
        proven = replace(proven, checks=(*proven.checks, *more))
        refuse_failed(proven.checks, str(stage.output))
    for file in files[1:]:  # external data, named by its content
        stage.announce(file.path)
    shutil.rmtree(work)
    digests = hash_files([shard.file for shard in job.plan.base.shards], 1) if verify else {}
    graph = recorded_graph(stage.path, job, form, facts, verify=verify)
    record = build_manifest(job, "onnx", files, proven.checks, digests, graph=graph)
    written = write_bytes(stage.beside(manifest_beside(stage.output)), record)
    stage.publish()
    told = (*proven.warnings, *exported.warnings, *lossy_warnings(facts, form))
    return Report(
        "onnx",
        str(stage.output),
        job.plan,
        proven.checks,
        (*files, written),
        (*job.plan.warnings, *told),
        {**facts, "onnx": graph, **space.facts(), **job.clock.facts()},
    )


def merged_checkpoint(job: Job, work: Path) -> Checkpoint:
    """Carry the plan out in the new folder `work` and read the result back."""
    from lora_export.execution.stage import write_plan

    work.mkdir()
    place = work / "merged.safetensors" if job.plan.base.layout == "file" else work
    with job.clock("merge"):
        write_plan(job.plan, place, allow_noop=job.allow_noop)
    return read_checkpoint(place)


def prove_file(
    path: Path,
    exported: Exported,
    job: Job,
    source: ModelSource,
    merged: Checkpoint,
    *,
    opener: Opener | None = None,
) -> Proven:
    """The torch models against each other, the file's static audit, and ONNX Runtime.

    opener: opens the session on the file; None takes verification.runtime's, with the user's
        providers.
    """
    from lora_export.onnx_export.audit import audit
    from lora_export.verification.attribution import blame
    from lora_export.verification.narrowing import Artifact, attribute_file
    from lora_export.verification.runtime import find_providers, opener_on

    # Each of the three frees its weights before the next one takes its own.
    by_model = prove_model(job, source, merged)
    weights, topology = exported.weights, exported.topology
    with job.clock("static audit"):
        static = audit(path, expected=weights, base=topology, inputs=exported.inputs)
    checks = (*by_model.checks, *at_level("file", static))
    artifact = Artifact(
        path, by_model.tolerance, opener or opener_on(find_providers(job.proof.provider))
    )
    if all(check.passed for check in static[:2]):  # the file can be read
        checks = (*checks, *_prove_runtime(artifact, by_model, job))
    if not all(check.passed for check in by_model.checks):
        return Proven(checks, attribution=by_model.proven().attribution)
    found = blame(checks, partial(attribute_file, by_model.suspects, artifact))
    with job.clock("overhead"):
        extra = None if found else saved(job.plan, by_model.witnesses.sites)
    return Proven(checks, attribution=found, saved=extra)


def _prove_runtime(artifact: Artifact, by_model: ModelProof, job: Job) -> tuple[Check, ...]:
    """ONNX Runtime against both torch models."""
    from lora_export.verification.runtime import try_model

    seen, tolerance = by_model.witnesses, by_model.tolerance
    with job.clock("runtime"):
        outputs, refusal = try_model(artifact.path, by_model.suspects.probes, artifact.opener)
    if refusal:
        return at_level("runtime", [refusal])
    checks = [tolerance.check("ONNX Runtime = merged", seen.merged, outputs)]
    if not job.plan.coupled:
        checks.append(tolerance.check("ONNX Runtime = unmerged", seen.unmerged, outputs))
    return at_level("runtime", checks)


def graph_facts(exported: Exported, saved: Mapping[str, int] | None) -> dict[str, Any]:
    """The size and hash of the graph, which are the base's own, and what that saves.

    capture: whether it was captured now ("new") or by an earlier run ("cached").
    """
    topology = exported.topology
    return {
        "nodes": topology.nodes,
        "initializers": topology.initializers,
        "hash": topology.hash,
        "opset": exported.opset,
        "capture": exported.captured,
        "saved": saved,
    }
