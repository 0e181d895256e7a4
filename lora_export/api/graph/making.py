"""The one path of every ONNX file: `onnx` writes and proves it, `verify` proves it again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_export.api.graph.encoder_pair import (
    Pair,
    export_pair,
    graph_facts,
    is_pair,
    pair_facts,
    prove_pair,
    rounded_twice,
    stored_twice,
)
from lora_export.api.graph.forms import Full
from lora_export.api.graph.int8_codes import code_warnings
from lora_export.api.graph.lower_precision import (
    full_proof,
    lower_into,
    prove_again,
)
from lora_export.api.graph.lowered_pair import LoweredPair, lower_pair, prove_pair_again
from lora_export.api.graph.recorded_graph import lossy_warnings
from lora_export.api.proof.checkpoint_proof import not_verified, prove_weights
from lora_export.api.proof.file_proof import prove_file
from lora_export.api.proof.model_proof import Proven
from lora_export.checkpoint.index import read_checkpoint
from lora_export.errors import UsageError
from lora_export.models.choose import folder_model
from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.models.generation.cached_pair import CachedPair
from lora_export.models.subject import Subject
from lora_export.report.survival import size_facts, survival_facts, survival_warnings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.api.graph.forms import Form
    from lora_export.api.job.planned_job import Job
    from lora_export.models.source import ModelSource
    from lora_export.onnx_export.export import Exported
    from lora_export.records import (
        Attribution,
        Check,
        Checkpoint,
        KeptEffect,
        Survival,
        WrittenFile,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of an ONNX file: where it is or will be written, and where work files lie."""

    #: The .onnx file, or the folder of an encoder and its decoder.
    path: Path
    #: A new folder for files that are deleted at the end: merged weights, and the float32 graph
    #: that a lowered file is compared with.
    work: Path
    #: The path as the user named it, for messages.
    shown: str
    #: Whether the file is written; otherwise it exists, and is only proven.
    writes: bool


@dataclass(frozen=True, slots=True)
class Made:
    """The files of an export, with their proof."""

    #: Empty where nothing was written.
    files: tuple[WrittenFile, ...]
    #: Facts for the report, by name.
    facts: Mapping[str, Any]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    #: Where a failed check comes from, if that is known.
    attribution: Attribution | None = None
    #: What the rounding of the weights leaves of the adapter; None where it was not measured.
    kept: KeptEffect | None = None
    #: What storing the merged weights left of the updates; None where nothing was verified.
    survival: Survival | None = None
    #: Why a level of the proof was not run or shows nothing, by its name.
    unproven: Mapping[str, str] = field(default_factory=dict)


def traced_model(job: Job, merged: Checkpoint) -> ModelSource:
    """Return the network to trace: that of --model, else the one that a folder describes.

    It is the merged folder's where the merge changes the shape of the model, else the base's.

    Raises:
        UsageError, InputError, MissingExtraError: the network cannot be built.
    """
    if job.source:
        return job.source
    base = merged if job.plan.reshaped else job.plan.base
    plain = folder_model(base, job.proof.input, job.network.task)
    if not job.network.kv_cache:
        return plain
    return CachedPair(plain) if is_pair(job) else CachedDecoder(plain)


def merged_checkpoint(job: Job, work: Path) -> Checkpoint:
    """Carry out the plan in the new folder `work`, and return the merged checkpoint."""
    from lora_export.execution.stage import write_plan

    work.mkdir()
    place = work / "merged.safetensors" if job.plan.base.layout == "file" else work
    with job.clock("merge", "bytes") as progress:
        write_plan(job.plan, place, allow_noop=job.allow_noop, progress=progress, clock=job.clock)
    return read_checkpoint(place)


def make_graph(job: Job, form: Form, place: Place, *, verify: bool = True) -> Made:
    """Merge, write the ONNX file if `place` asks for it, and prove it.

    Each work file is proven before the next file is made from it. The checks of the final file are
    returned, whether they passed or not.

    Raises:
        VerificationError: a check on the way failed.
        FitError, InputError, UsageError: the network cannot be captured, or does not fit.
    """
    from lora_export.verification.failure import refuse_failed, with_facts

    if verify and job.proof.proof == "weights":
        _refuse_weights_only(job, form)
    merged = merged_checkpoint(job, place.work)
    source = traced_model(job, merged)
    by_weights: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    survival = None
    if verify:
        by_weights, survival, _ = prove_weights(job, merged)
    else:
        warnings = not_verified(job, but=["--input"])
    if place.writes or form.is_lowered:  # else no file is made of these weights
        refuse_failed(by_weights, place.shown, plan=job.plan)
    measured = {**survival_facts(survival), **size_facts(survival)}
    with with_facts(measured):
        if isinstance(source, CachedPair):
            pair = Pair(source, job.plan, merged)
            make = _make_lowered_pair if form.is_lowered else _make_pair
            made = make(job, form, place, pair, by_weights, verify=verify)
        else:
            subject = Subject(source, job.plan, merged)
            made = _make_file(job, form, place, subject, by_weights, verify=verify)
    session = _session_facts(place.path) if verify else {}
    return replace(
        made,
        checks=(*by_weights, *made.checks),
        warnings=(*warnings, *made.warnings, *survival_warnings(survival)),
        facts={**made.facts, **session, **measured},
        survival=survival,
    )


def _refuse_weights_only(job: Job, form: Form) -> None:
    """Refuse a proof without runs of a file that only runs can prove.

    Raises:
        UsageError: the precision is not fp32, or the graphs are those of an encoder and a decoder.
    """
    if form.is_lowered or is_pair(job):
        what = f"--precision {form.precision.name}" if form.is_lowered else "--kv-cache of a pair"
        message = f"{what} is proven by runs, which --proof weights leaves out"
        raise UsageError(
            message,
            where="--proof weights",
            hint="leave it out, or --no-verify",
            cause="usage/options-contradict",
        )


def _session_facts(path: Path) -> dict[str, Any]:
    """Return how ONNX Runtime used the weights of a file, or of the files in a folder."""
    from lora_export.verification.runtime.sessions import is_mapped

    files = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    return {"session": {"weights": "mapped" if any(map(is_mapped, files)) else "copied"}}


def _make_file(
    job: Job,
    form: Form,
    place: Place,
    subject: Subject,
    before: tuple[Check, ...],
    *,
    verify: bool,
) -> Made:
    """Make and prove one ONNX file.

    before: the checks that have passed already, for the report of a failure.
    """
    from lora_export.onnx_export.export import export

    writes = place.writes and not form.is_lowered
    exported = export(subject, place.path if writes else None, form.settings, clock=job.clock)
    if form.is_lowered:
        full = Full(job, subject, exported, place.work / place.path.name)
        return _make_lowered(place, full, form, before, verify=verify)
    proven = prove_file(place.path, exported, job, subject) if verify else Proven()
    if writes:
        checks = (*before, *proven.checks)
        _refuse_failed(job, place, checks, proven)
    return _made(exported, proven, {"graph": graph_facts(exported, proven.saved)})


def _refuse_failed(job: Job, place: Place, checks: tuple[Check, ...], proven: Proven) -> None:
    from lora_export.verification.failure import refuse_failed

    refuse_failed(checks, place.shown, proven.attribution, plan=job.plan, facts=proven.facts)


def _make_lowered(
    place: Place, full: Full, form: Form, before: tuple[Check, ...], *, verify: bool
) -> Made:
    """Make and prove a file in a lower precision, after the float32 graph that it is made from."""
    proven = Proven()
    if verify:
        full.link()
        job = full_proof(full.job, form)
        proven = prove_file(full.path, full.exported, job, full.subject, linked=True)
        # The lowered file is compared with this graph, so the graph must be right.
        checks = (*before, *proven.checks)
        _refuse_failed(job, place, checks, proven)
    if place.writes:
        files, more, facts = lower_into(place.path, full, form, verify=verify)
    else:
        files = ()
        more, facts = prove_again(place.path, full, form)
    made = _made(full.exported, proven, facts)
    return replace(made, files=files, checks=(*made.checks, *more))


def _made(exported: Exported, proven: Proven, facts: Mapping[str, Any]) -> Made:
    lowered = (*code_warnings(facts), *lossy_warnings(facts))
    warnings = (*proven.warnings, *exported.warnings, *lowered)
    return Made(
        exported.files,
        {**facts, **proven.facts},
        proven.checks,
        warnings,
        proven.attribution,
        proven.kept,
        unproven=proven.unproven,
    )


def _make_pair(
    job: Job, form: Form, place: Place, pair: Pair, _: tuple[Check, ...], *, verify: bool
) -> Made:
    folder = place.path if place.writes else None
    parts, twice = export_pair(pair, folder, form.settings, job.clock)
    proven = prove_pair(place.path, parts, job, pair) if verify else Proven()
    warnings = [*dict.fromkeys(line for part in parts.values() for line in part.warnings)]
    facts: dict[str, Any] = {"graphs": pair_facts(parts, proven.saved), **proven.facts}
    if place.writes:
        facts["stored_twice"] = twice
        warnings += stored_twice(twice)
    files = tuple(file for part in parts.values() for file in part.files)
    warnings = [*proven.warnings, *warnings]
    return Made(files, facts, proven.checks, tuple(warnings), proven.attribution, proven.kept)


def _make_lowered_pair(
    job: Job, form: Form, place: Place, pair: Pair, before: tuple[Check, ...], *, verify: bool
) -> Made:
    """Make and prove two lowered files, after the float32 graphs that they are made from."""
    form = replace(form, settings=replace(form.settings, whole=False))
    parts, twice = export_pair(pair, None, form.settings, job.clock)
    networks = pair.parts()
    fulls = {
        name: Full(job, networks[name], part, place.work / f"{name}.onnx")
        for name, part in parts.items()
    }
    proven = Proven()
    if verify:
        for full in fulls.values():
            full.link()
        proven = prove_pair(place.work, parts, full_proof(job, form), pair, linked=True)
        _refuse_failed(job, place, (*before, *proven.checks), proven)
    two = LoweredPair(job, pair, place.path, fulls, form)
    files: tuple[WrittenFile, ...] = ()
    if place.writes:
        files, more, facts = lower_pair(two, verify=verify)
    else:
        more, facts = prove_pair_again(two)
    made = _made(next(iter(parts.values())), proven, facts)
    graphs = {"graphs": pair_facts(parts, proven.saved)}
    of_captures = (line for part in parts.values() for line in part.warnings)
    twofold = rounded_twice(twice) if place.writes else ()
    return replace(
        made,
        files=files,
        checks=(*made.checks, *more),
        facts={**made.facts, **graphs},
        warnings=tuple(dict.fromkeys((*made.warnings, *of_captures, *twofold))),
    )
