"""The verb merge: it reads base and adapters, and publishes one proven safetensors checkpoint."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.describing import describe
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.keywords import (
    adapter_options,
    checked,
    proof_options,
)
from lora_export.api.job.planned_job import make_job
from lora_export.api.page_file import with_page
from lora_export.api.proof.checkpoint_proof import not_verified, prove_further
from lora_export.api.proof.expected import expected_proof
from lora_export.api.proof.explaining import explained
from lora_export.api.proof.model_proof import Proven
from lora_export.api.recording import build_manifest, input_paths, write_manifest
from lora_export.api.space import refuse_too_little, space_for
from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.folder.side_files import manifest_beside
from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.output.publish import staging
from lora_export.checkpoint.output.targets import check_folder
from lora_export.errors import OutputError, UsageError
from lora_export.execution.undo import check_undoable, is_undo_of, write_undo
from lora_export.planning.folder.sharding import parse_size, resharded
from lora_export.records import at_level
from lora_export.report.result import Report
from lora_export.report.stopwatch import Stopwatch
from lora_export.report.survival import size_facts, survival_facts, survival_warnings
from lora_export.shown import shell_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from lora_export.api.job.keywords import OnProgress, Settings
    from lora_export.api.job.planned_job import Job
    from lora_export.checkpoint.output.publish import Staging
    from lora_export.records import MergePlan, WrittenFile

_OTHER_SUFFIXES = (".pt", ".pth", ".bin", ".onnx")


@with_page("merge")
@checked("merge")
def merge(
    base: str | Path,
    adapters: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    model: str | None = None,
    task: str | None = None,
    verify: bool = True,
    dry_run: bool = False,
    force: bool = False,
    undo: str | Path | None = None,
    jobs: int | None = None,
    max_shard_size: str | None = None,
    report: str | Path | None = None,
    progress: OnProgress | None = None,
    **settings: Unpack[Settings],
) -> Report:
    """Merge `adapters` into `base`, prove the result, and publish it at `output`.

    Every weight keeps its name and shape, and its dtype unless `dtype` names another. By default a
    merged weight has the bits that the adapter's own library gives: loralib 0.1.2's `model.eval()`,
    PEFT 0.21's `merge_and_unload()`. A base that is one file gives one safetensors file. A folder
    gives a folder with the same shards, its other files, and a model card.

    Example:
        A folder of PEFT holds every fact of its adapter::

            report = merge("llama", ["llama-lora"], "llama-merged")
            assert report.passed

    Args:
        base: a folder, a weight file, or a shard index.
        adapters: files or folders, of PEFT, loralib, litgpt, or with alpha beside the factors.
            Several are summed from the unmerged base.
        output: the file or folder to write; must not exist unless `force`. A `dry_run` needs none.
        model: "package.module:function" or "file.py:function", which names the function that
            builds your network. Its code is run. None builds a Hugging Face folder's own class,
            where transformers has one.
        task: what the network does, such as "text-classification". transformers' class for this
            task is built instead of the one that config.json names.
        verify: prove every element by weights, and the outputs where a network can be built.
        dry_run: return the plan and the bytes it needs on disk and in memory; write nothing.
        force: replace an earlier export at `output`, in one step.
        undo: keep what the merge changes in this file, for `unmerge`.
        jobs: threads; None takes one a processor.
        max_shard_size: lay a folder out anew, in shards of at most e.g. "5GB".
        dtype: "float32", "float16" or "bfloat16": every floating tensor is in this dtype, merged in
            float32 and rounded once. None and "keep" take the base's dtypes.
        report: the file of a page on what was found, .html or .md, also of a refusal. An earlier
            report there is replaced, any other file is not. None writes none.
        progress: called with a `lora_export.Progress` when a stage begins and when it advances,
            perhaps from another thread. None reports nothing.
        settings: how adapters are read and merged, and how the network is run to be proven. See
            `lora_export.api.job.keywords.Settings`, or the command's options of the same names.

    Returns:
        The report: `plan` with every tensor, `checks`, `files` with their SHA-256, `warnings`.

    Raises:
        UsageError: a keyword is unknown or has a wrong value; or a fact that no file holds is
            missing or contradicted.
        InputError: a file is damaged, unsafe, or of an unknown format.
        LimitError: an input asks for more than the limits allow.
        FitError: adapter and base do not fit.
        VerificationError: a check failed; the module or tensor to blame is named.
        OutputError: `output` exists, lies inside an input, or is in use.
        StorageError: the system refuses to read or write, or the disk is too small.
        MissingExtraError: transformers is needed and not installed.
            After each of these errors `output` is what it was before the call.
    """
    proof = proof_options(settings)
    proof.check_made(verify=verify)
    for path in (output, undo):
        if path:
            check_folder(Path(path))
    job = make_job(
        base,
        adapters,
        network=Network(model, task),
        proof=proof,
        settings=adapter_options(settings),
        clock=Stopwatch(progress),
    )
    job = replace(job, shows_samples=report is not None)
    if max_shard_size:
        job = replace(job, plan=_resharded(job.plan, max_shard_size))
    plan = job.plan
    if undo:
        check_undoable(plan)
    target = _target(output, plan, needed=not dry_run)
    if dry_run:
        space = space_for(plan, target if output else None, jobs)
        output = str(output or "")
        facts = {**space.facts(), **expected_proof(job, verify=verify)}
        return Report("merge", output, plan, warnings=plan.warnings, facts=facts, dry_run=True)
    kind = plan.base.layout
    beside = (manifest_beside(target),) if kind == "file" else ()
    inputs = input_paths(plan)
    with ExitStack() as stack:
        kept = undo and stack.enter_context(
            staging(
                Path(undo),
                force=force or is_undo_of(Path(undo), plan),
                inputs=inputs,
                kind="file",
            )
        )
        stage = stack.enter_context(
            staging(target, force=force, inputs=inputs, kind=kind, beside=beside)
        )
        writing = Writing(jobs or os.cpu_count() or 1, verify, force, max_shard_size)
        return replace(_merge_into(stage, job, writing, kept or None), output=str(target))


@dataclass(frozen=True, slots=True)
class Writing:
    """How a merge is carried out."""

    #: Threads, 1 or more.
    jobs: int
    #: Whether the result is proven before it is published.
    verify: bool
    #: Whether an earlier export is replaced.
    force: bool
    #: The size of new shards, such as "5GB"; None keeps the base's.
    max_shard_size: str | None


def _merge_into(stage: Staging, job: Job, writing: Writing, undo: Staging | None) -> Report:
    from lora_export.execution.digests import hash_files
    from lora_export.execution.stage import write_plan
    from lora_export.verification.failure import refuse_failed
    from lora_export.verification.weights.whole_weights import WeightProof

    plan = job.plan
    space = space_for(plan, stage.output, writing.jobs)
    refuse_too_little(space, stage.output)
    proof = WeightProof(plan) if writing.verify else None
    with job.clock("merge", "bytes") as progress:
        files, digests = write_plan(
            plan,
            stage.path,
            allow_noop=job.allow_noop,
            jobs=writing.jobs,
            watcher=proof,
            progress=progress,
            clock=job.clock,
            digest_base=writing.verify or undo is not None,
        )
    around = {file.name for file in plan.side_files} | {plan.index_name}
    weights = [file for file in files if file.path not in around]
    proven, survival = Proven(warnings=not_verified(job)), None
    if proof:
        with job.clock("proof by weights"):
            survival = proof.survival()
            merged = read_checkpoint(stage.path)
            by_weights = proof.checks(merged.tensors(), allow_noop=job.allow_noop)
        proven = prove_further(job, merged, at_level("weights", by_weights))
        proven = explained(plan, merged, replace(proven, wrong=proof.wrong_tensors()))
    checks = proven.checks
    found = {**survival_facts(survival), **size_facts(survival), **proven.facts}
    refuse_failed(
        checks,
        str(stage.output),
        proven.attribution,
        plan=plan,
        facts=found,
        findings=proven.findings,
    )
    left = [f for adapter in plan.adapters for f in adapter.files() if f not in digests]
    with job.clock("hash", "bytes") as progress:
        digests |= hash_files(left, writing.jobs, progress)
    card = describe(
        job,
        stage.path,
        checks,
        digests,
        max_shard_size=writing.max_shard_size,
        survival=survival,
    )
    files = (*files, *card)
    record = build_manifest(
        job,
        "merge",
        files,
        checks,
        digests,
        kept=proven.kept,
        survival=survival,
        unproven=proven.unproven,
    )
    files = (*files, write_manifest(stage, record))
    # The undo file is published before the checkpoint: a run that is killed between the two leaves
    # an undo file too many, never a merged checkpoint that cannot be undone.
    try:
        if undo:
            with job.clock("write the undo file"):
                kept = write_undo(plan, undo.path, digests, weights, writing.jobs)
                files = (*files, kept)
                _publish_undo(undo, kept, force=writing.force)
        with job.clock("publish"):
            stage.publish()
    except BaseException:
        if undo and undo.is_published:
            undo.output.unlink()  # it describes a checkpoint that was not published
        raise
    warnings = (*plan.warnings, *proven.warnings, *survival_warnings(survival))
    facts = {**space.facts(), **found, **job.clock.facts()}
    return Report(
        "merge",
        str(stage.output),
        plan,
        checks,
        files,
        warnings,
        facts,
        kept=proven.kept,
        unproven=proven.unproven,
    )


def _publish_undo(undo: Staging, written: WrittenFile, *, force: bool) -> None:
    """Publish the undo file, unless a killed run has left one of the same bytes at its place.

    Raises:
        OutputError: the undo file of another base or merge is there.
    """
    if force or not undo.output.exists():
        undo.publish(is_last=False)
    elif file_sha256(undo.output) != written.sha256:
        hint = "choose another name, or replace it with --force"
        raise OutputError(
            "is the undo file of another base or merge",
            where=str(undo.output),
            hint=hint,
            cause="output/exists",
        )


def _resharded(plan: MergePlan, size: str) -> MergePlan:
    """Return the plan with its tensors in new shards of at most `size`, such as "5GB".

    Raises:
        UsageError: the base is one file, or `size` is no size.
    """
    if plan.base.layout == "file":
        raise UsageError(
            "a base that is one file gives one file, and has no shards",
            where="--max-shard-size",
            hint="leave --max-shard-size out, or name the folder that holds the file",
            cause="usage/no-effect",
        )
    shards = resharded(plan.shards, parse_size(size))
    index = "model.safetensors.index.json" if len(shards) > 1 else None
    return replace(plan, shards=shards, index_name=index)


def _target(output: str | Path | None, plan: MergePlan, *, needed: bool) -> Path:
    """Return the path of the output, after its suffix is checked against what will be written.

    Raises:
        UsageError: no output is named where one is needed, or its suffix is of another kind.
    """
    if output is None:
        if needed:
            raise UsageError(
                "no output is named",
                hint="-o OUT, or --dry-run to see the plan",
                cause="usage/output-name",
            )
        return Path()
    target = Path(output)
    other = target.suffix in _OTHER_SUFFIXES
    if plan.base.layout == "folder":
        if other or target.suffix == ".safetensors":
            raise UsageError(
                f"the base is a folder and gives a folder, but {target.name} names a file",
                where=str(target),
                hint=f"-o {shell_word(str(target.with_suffix('')))}",
                cause="usage/output-name",
            )
    elif target.suffix != ".safetensors":
        fitting = target.with_suffix(".safetensors") if other else f"{target}.safetensors"
        raise UsageError(
            "the base is one file and gives one file, whose name must end in .safetensors",
            where=str(target),
            hint=f"-o {shell_word(str(fitting))}"
            + ("; for ONNX: lora-export onnx" if other else ""),
            cause="usage/output-name",
        )
    return target
