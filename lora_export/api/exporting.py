"""onnx: base and adapters in, one proven ONNX file out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.network import Network
from lora_export.api.proving import (
    build_manifest,
    input_paths,
    make_job,
    not_verified,
    probes_for,
    prove_model,
    prove_weights,
)
from lora_export.api.space import refuse_too_little, space_for
from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.publish import staging
from lora_export.checkpoint.side_files import manifest_beside
from lora_export.checkpoint.writer import write_bytes
from lora_export.models.choose import folder_model
from lora_export.models.decoding import CachedDecoder
from lora_export.report.result import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from lora_export.api.proving import Job, ProofOptions
    from lora_export.checkpoint.publish import Staging
    from lora_export.models.source import ModelSource
    from lora_export.onnx_export.export import Exported
    from lora_export.planning.request import AdapterOptions
    from lora_export.records import Check, Checkpoint


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
        kv_cache: the graph of a decoder takes the keys and values of what was said so far, and
            gives them with its own added: past_key_values.0.key, present.0.key, ...
        opset: ONNX operator set; None takes the exporter's own.
        verify: prove by weights, as a model, in ONNX Runtime and by the static audit.
        force: replace an earlier export at `output`.
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
        traced_model(job, job.plan.base)  # what cannot be built is refused before anything is done
    target = Path(output)
    beside = (manifest_beside(target),)
    inputs = input_paths(job.plan)
    with staging(target, force=force, inputs=inputs, kind="file", beside=beside) as stage:
        report = _export_into(stage, job, opset=opset, verify=verify)
    return replace(report, output=str(target))


def traced_model(job: Job, merged: Checkpoint) -> ModelSource:
    """The user's model, or the folder's: the result's own where the adapter changes its shape."""
    if job.source:
        return job.source
    base = merged if job.plan.reshaped else job.plan.base
    plain = folder_model(base, job.proof.input, job.network.task)
    return CachedDecoder(plain) if job.network.kv_cache else plain


def _export_into(stage: Staging, job: Job, *, opset: int | None, verify: bool) -> Report:
    from lora_export.execution.digests import hash_files
    from lora_export.onnx_export.export import export
    from lora_export.verification.proof import refuse_failed

    space = space_for(job.plan, stage.output)
    refuse_too_little(space, stage.output)
    work = stage.folder / "merged"
    merged = merged_checkpoint(job, work)
    source = traced_model(job, merged)
    checks: tuple[Check, ...] = ()
    told = not_verified(job, but=["--input"])
    if verify:
        checks, told = prove_weights(job, merged), ()
        refuse_failed(checks, str(stage.output))
    exported = export(source, job.plan, merged, stage.path, opset=opset)
    for file in exported.files[1:]:  # external data, named by its content
        stage.announce(file.path)
    if verify:
        checks = (*checks, *prove_file(stage.path, exported, job, source, merged))
        refuse_failed(checks, str(stage.output))
    shutil.rmtree(work)
    digests = hash_files([shard.file for shard in job.plan.base.shards], 1) if verify else {}
    record = build_manifest(job, "onnx", exported.files, checks, digests)
    written = write_bytes(stage.beside(manifest_beside(stage.output)), record)
    stage.publish()
    return Report(
        "onnx",
        str(stage.output),
        job.plan,
        checks,
        (*exported.files, written),
        (*job.plan.warnings, *told),
        {"graph": graph_facts(exported), **space.facts()},
    )


def merged_checkpoint(job: Job, work: Path) -> Checkpoint:
    """Carry the plan out in the new folder `work` and read the result back."""
    from lora_export.execution.stage import write_plan

    work.mkdir()
    place = work / "merged.safetensors" if job.plan.base.layout == "file" else work
    write_plan(job.plan, place, allow_noop=job.allow_noop)
    return read_checkpoint(place)


def prove_file(
    path: Path, exported: Exported, job: Job, source: ModelSource, merged: Checkpoint
) -> tuple[Check, ...]:
    """The torch models against each other, the file's static audit, and ONNX Runtime."""
    from lora_export.onnx_export.audit import audit
    from lora_export.verification.generation import check_generation
    from lora_export.verification.runtime import run_model

    by_model = prove_model(job, source, merged)
    seen, tolerance = by_model.witnesses, by_model.tolerance
    static = audit(path, expected=exported.weights, base=exported.topology, inputs=source.inputs)
    checks = (*by_model.checks, *static)
    readable = all(check.passed for check in static[:2])
    if not readable:
        return checks
    outputs = run_model(path, probes_for(job, source))
    checks = (*checks, tolerance.check("ONNX Runtime = merged", seen.merged, outputs))
    if not job.plan.coupled:
        unmerged = tolerance.check("ONNX Runtime = unmerged", seen.unmerged, outputs)
        checks = (*checks, unmerged)
    if not isinstance(source, CachedDecoder):
        return checks
    model = source.plain.load(merged, full={}, untied=job.plan.separated)
    return (*checks, *check_generation(path, source, model, tolerance, job.proof.seed))


def graph_facts(exported: Exported) -> dict[str, int | str]:
    """The size and hash of the graph, which are the base's own: no overhead."""
    topology = exported.topology
    return {
        "nodes": topology.nodes,
        "initializers": topology.initializers,
        "hash": topology.hash,
    }
