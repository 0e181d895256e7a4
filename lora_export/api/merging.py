"""merge: base and adapters in, one proven safetensors checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.proving import (
    build_manifest,
    input_paths,
    make_job,
    not_verified,
    prove_further,
)
from lora_export.api.space import refuse_too_little, space_for
from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.publish import staging
from lora_export.checkpoint.side_files import MANIFEST_NAME, manifest_beside
from lora_export.checkpoint.writer import write_bytes
from lora_export.errors import UsageError
from lora_export.report.result import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from lora_export.api.proving import Job, ProofOptions
    from lora_export.checkpoint.publish import Staging
    from lora_export.planning.request import AdapterOptions
    from lora_export.records import Check, MergePlan


def merge(
    base: str | Path,
    adapters: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    model: str | None = None,
    verify: bool = True,
    dry_run: bool = False,
    force: bool = False,
    proof: ProofOptions | None = None,
    **settings: Unpack[AdapterOptions],
) -> Report:
    """Merge `adapters` into `base`, prove the result and publish it at `output`.

    A base that is one file gives one safetensors file, a folder gives a folder with the same
    shards and side files. The arithmetic is loralib 0.1.2's `model.eval()`, bit for bit.

    Args:
        base: a folder, a weight file, or a shard index.
        adapters: loralib files; several are summed from the unmerged base.
        output: must not exist unless `force`; not needed for a `dry_run`.
        model: "package.module:function" or "file.py:function", the user's factory.
        verify: prove by weights, and as a model where one can be built.
        dry_run: plan only; nothing is written.
        force: replace an earlier export at `output`, in one step.
        proof: how a model is run to be proven.
        settings: see planning.request.AdapterOptions.

    Raises:
        LoraExportError: one of its classes for everything that is wrong; then nothing is at
            `output` that was not there before.
    """
    job = make_job(base, adapters, model=model, proof=proof, settings=settings)
    plan = job.plan
    if dry_run:
        space = space_for(plan, Path(output) if output else None)
        return Report(
            "merge",
            str(output or ""),
            plan,
            warnings=plan.warnings,
            facts=space.facts(),
            dry_run=True,
        )
    target = _target(output, plan)
    kind = plan.base.layout
    beside = (manifest_beside(target),) if kind == "file" else ()
    inputs = input_paths(plan)
    with staging(target, force=force, inputs=inputs, kind=kind, beside=beside) as stage:
        return _merge_into(stage, job, target, verify=verify)


def _merge_into(stage: Staging, job: Job, target: Path, *, verify: bool) -> Report:
    from lora_export.execution.stage import write_plan
    from lora_export.verification.proof import refuse_failed
    from lora_export.verification.weights import WeightProof

    plan = job.plan
    space = space_for(plan, target)
    refuse_too_little(space, target)
    proof = WeightProof(plan) if verify else None
    files, digests = write_plan(plan, stage.path, allow_noop=job.allow_noop, watcher=proof)
    checks: tuple[Check, ...] = ()
    told = not_verified(job)
    if proof:
        merged = read_checkpoint(stage.path)
        by_weights = proof.checks(merged.tensors(), allow_noop=job.allow_noop)
        checks, told = prove_further(job, merged, by_weights)
    refuse_failed(checks, str(stage.output))
    record = build_manifest(job, "merge", files, checks, digests)
    beside = plan.base.layout == "file"
    place = stage.beside(manifest_beside(stage.output)) if beside else stage.path / MANIFEST_NAME
    written = write_bytes(place, record)
    stage.publish()
    warnings = (*plan.warnings, *told)
    return Report("merge", str(target), plan, checks, (*files, written), warnings, space.facts())


def _target(output: str | Path | None, plan: MergePlan) -> Path:
    if output is None:
        raise UsageError("no output is named", hint="-o OUT, or --dry-run to see the plan")
    target = Path(output)
    if plan.base.layout == "file" and target.suffix in (".pt", ".pth", ".bin", ".onnx"):
        raise UsageError(
            "merge writes safetensors, which this name denies",
            where=str(target),
            hint=f"-o {target.with_suffix('.safetensors')}; for ONNX: lora-export onnx",
        )
    return target
