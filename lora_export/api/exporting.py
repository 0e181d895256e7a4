"""onnx: base and adapters in, one proven ONNX file out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.api.exporting_pair import (
    export_pair,
    graph_facts,
    is_pair,
    pair_facts,
    prove_pair,
    stored_twice,
)
from lora_export.api.network import Network
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
from lora_export.checkpoint.side_files import MANIFEST_NAME, manifest_beside
from lora_export.checkpoint.writer import write_bytes
from lora_export.errors import UsageError
from lora_export.models.answering import CachedPair
from lora_export.models.choose import folder_model
from lora_export.models.decoding import CachedDecoder
from lora_export.onnx_export.captures import open_captures
from lora_export.records import at_level
from lora_export.report.result import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from lora_export.api.proving import Job, ModelProof, ProofOptions
    from lora_export.checkpoint.publish import Staging
    from lora_export.models.source import ModelSource
    from lora_export.onnx_export.captures import Captures
    from lora_export.onnx_export.export import Exported
    from lora_export.planning.request import AdapterOptions
    from lora_export.records import Check, Checkpoint, WrittenFile
    from lora_export.verification.narrowing import Artifact
    from lora_export.verification.runtime import Opener


def export_onnx(
    base: str | Path,
    adapters: Sequence[str | Path],
    output: str | Path,
    *,
    model: str | None = None,
    task: str | None = None,
    kv_cache: bool = False,
    opset: int | None = None,
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
        output: the .onnx file, or with `kv_cache` of an encoder-decoder the folder of two; must
            not exist unless `force`.
        model: the user's factory; without it `base` must be a Hugging Face folder (extra hf).
        task: the folder's model is of transformers' class for it ("text-classification", ...), and
            not of the class that config.json names.
        kv_cache: the graph of a decoder takes the keys and values of what was said so far, and
            gives them with its own added: past_key_values.0.key, present.0.key, ... Of an
            encoder-decoder two graphs are made.
        opset: ONNX operator set; None takes the exporter's own.
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
    from lora_export.onnx_export.trace import check_opset

    if opset is not None:
        check_opset(opset)
    network = Network(model, task, kv_cache)
    job = make_job(base, adapters, network=network, proof=proof, settings=settings)
    if not job.plan.reshaped:
        with job.clock("plan"):
            traced_model(job, job.plan.base)  # what cannot be built is refused before all else
    captures = open_captures(capture_cache, off=no_capture_cache)
    target = Path(output)
    pair = is_pair(job)
    if pair and target.suffix == ".onnx":
        message = "--kv-cache of an encoder-decoder writes a folder of two files"
        raise UsageError(message, where=str(target), hint=f"-o {target.with_suffix('')}")
    with staging(
        target,
        force=force,
        inputs=input_paths(job.plan),
        kind="folder" if pair else "file",
        beside=() if pair else (manifest_beside(target),),
    ) as stage:
        report = _export_into(stage, job, opset=opset, verify=verify, captures=captures)
    return replace(report, output=str(target))


def traced_model(job: Job, merged: Checkpoint) -> ModelSource:
    """The user's model, or the folder's: the result's own where the adapter changes its shape."""
    if job.source:
        return job.source
    base = merged if job.plan.reshaped else job.plan.base
    plain = folder_model(base, job.proof.input, job.network.task)
    if job.network.task:
        plain.refuse_headless([*base.tensors(), *job.plan.full_tensors()])
    if not job.network.kv_cache:
        return plain
    return CachedPair(plain) if is_pair(job) else CachedDecoder(plain)


def _export_into(
    stage: Staging, job: Job, *, opset: int | None, verify: bool, captures: Captures | None
) -> Report:
    from lora_export.execution.digests import hash_files
    from lora_export.verification.proof import refuse_failed

    space = space_for(job.plan, stage.output)
    refuse_too_little(space, stage.output)
    work = stage.folder / "merged"
    merged = merged_checkpoint(job, work)
    source = traced_model(job, merged)
    proven = Proven(warnings=not_verified(job, but=["--input"]))
    if verify:
        proven = Proven(prove_weights(job, merged))
        refuse_failed(proven.checks, str(stage.output))
    made = _make(stage, job, source, merged, opset=opset, captures=captures)
    if verify:
        by_weights = proven.checks
        proven = made.prove()
        proven = replace(proven, checks=(*by_weights, *proven.checks))
        refuse_failed(proven.checks, str(stage.output), proven.attribution)
    shutil.rmtree(work)
    digests = hash_files([shard.file for shard in job.plan.base.shards], 1) if verify else {}
    record = build_manifest(job, "onnx", made.files, proven.checks, digests)
    written = write_bytes(_manifest_place(stage), record)
    stage.publish()
    return Report(
        "onnx",
        str(stage.output),
        job.plan,
        proven.checks,
        (*made.files, written),
        (*job.plan.warnings, *proven.warnings, *made.warnings),
        {**made.facts(proven.saved), **space.facts(), **job.clock.facts()},
    )


def _manifest_place(stage: Staging) -> Path:
    if stage.kind == "folder":
        return stage.path / MANIFEST_NAME
    return stage.beside(manifest_beside(stage.output))


@dataclass(frozen=True, slots=True)
class _Made:
    """What was written, its proof, and the facts of it where it saves so much."""

    files: tuple[WrittenFile, ...]
    warnings: tuple[str, ...]
    facts: Callable[[Mapping[str, int] | None], Mapping[str, Any]]
    prove: Callable[[], Proven]


def _make(
    stage: Staging,
    job: Job,
    source: ModelSource,
    merged: Checkpoint,
    *,
    opset: int | None,
    captures: Captures | None,
) -> _Made:
    from lora_export.onnx_export.export import export

    if isinstance(source, CachedPair):
        parts, twice = export_pair(source, job, merged, stage.path, opset=opset, captures=captures)
        told = [line for part in parts.values() for line in part.warnings]
        return _Made(
            tuple(file for part in parts.values() for file in part.files),
            (*dict.fromkeys(told), *stored_twice(twice)),
            lambda saved: {"graphs": pair_facts(parts, saved), "stored_twice": twice},
            lambda: prove_pair(stage.path, parts, job, source, merged),
        )
    exported = export(
        source, job.plan, merged, stage.path, opset=opset, captures=captures, clock=job.clock
    )
    for file in exported.files[1:]:  # external data, named by its content
        stage.announce(file.path)
    return _Made(
        exported.files,
        exported.warnings,
        lambda saved: {"graph": graph_facts(exported, saved)},
        lambda: prove_file(stage.path, exported, job, source, merged),
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

    opener: opens the session on the file; None takes verification.runtime.open_session.
    """
    from lora_export.onnx_export.audit import audit
    from lora_export.verification.attribution import blame
    from lora_export.verification.narrowing import Artifact, attribute_file
    from lora_export.verification.runtime import open_session

    # Each of the three frees its weights before the next one takes its own.
    by_model = prove_model(job, source, merged)
    weights, topology = exported.weights, exported.topology
    with job.clock("static audit"):
        static = audit(path, expected=weights, base=topology, inputs=exported.inputs)
    checks = (*by_model.checks, *at_level("file", static))
    artifact = Artifact(path, by_model.tolerance, opener or open_session)
    if all(check.passed for check in static[:2]):  # the file can be read
        checks = (*checks, *_prove_runtime(artifact, by_model, job))
    if not all(check.passed for check in by_model.checks):
        return Proven(checks, attribution=by_model.proven().attribution)
    found = blame(checks, partial(attribute_file, by_model.suspects, artifact))
    with job.clock("overhead"):
        extra = None if found else saved(job.plan, by_model.witnesses.sites)
    return Proven(checks, attribution=found, saved=extra)


def _prove_runtime(artifact: Artifact, by_model: ModelProof, job: Job) -> tuple[Check, ...]:
    """ONNX Runtime against both torch models; where it keeps a past, by what it generates."""
    from lora_export.verification.generation import check_generation
    from lora_export.verification.runtime import try_model

    seen, tolerance = by_model.witnesses, by_model.tolerance
    with job.clock("runtime"):
        outputs, refusal = try_model(artifact.path, by_model.suspects.probes, artifact.opener)
    if refusal:
        return at_level("runtime", [refusal])
    checks = [tolerance.check("ONNX Runtime = merged", seen.merged, outputs)]
    if not job.plan.coupled:
        checks.append(tolerance.check("ONNX Runtime = unmerged", seen.unmerged, outputs))
    suspects = by_model.suspects
    if isinstance(suspects.source, CachedDecoder):
        with job.clock("generation"):
            plain = suspects.source.plain
            model = plain.load(suspects.merged, full={}, untied=job.plan.separated)
            checks += check_generation(
                artifact.path, suspects.source, model, tolerance, job.proof.seed
            )
    return at_level("runtime", checks)
