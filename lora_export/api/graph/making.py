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
from lora_export.models.inputs.static_sizes import parse_static, with_static
from lora_export.models.subject import Subject
from lora_export.report.lowered import lowered_facts
from lora_export.report.survival import size_facts, survival_facts, survival_warnings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_export.api.graph.forms import Form
    from lora_export.api.graph.places import Place
    from lora_export.api.job.planned_job import Job
    from lora_export.models.source import ModelSource
    from lora_export.records import (
        Attribution,
        Check,
        Checkpoint,
        KeptEffect,
        Survival,
        WrittenFile,
    )


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
    if sizes := parse_static(job.network.static):
        plain.declare(with_static(plain.inputs, sizes))
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


def make_graph(job: Job, forms: Sequence[Form], place: Place, *, verify: bool = True) -> Made:
    """Merge, write the ONNX files if `place` asks for them, and prove them.

    Each work file is proven before the next file is made from it. The checks of the final files are
    returned, whether they passed or not.

    forms: one for each file of a network, equal but for the precision.

    Raises:
        VerificationError: a check on the way failed.
        FitError, InputError, UsageError: the network cannot be captured, or does not fit.
    """
    from lora_export.verification.failure import refuse_failed, with_facts

    if verify and job.proof.proof == "weights":
        _refuse_weights_only(job, forms)
    merged = merged_checkpoint(job, place.work)
    source = traced_model(job, merged)
    by_weights: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    survival = None
    if verify:
        by_weights, survival, _ = prove_weights(job, merged)
    else:
        warnings = not_verified(job, but=["--input"])
    if place.writes or any(form.is_lowered for form in forms):  # else no file is made of these
        refuse_failed(by_weights, place.shown, plan=job.plan)
    measured = {**survival_facts(survival), **size_facts(survival)}
    with with_facts(measured):
        if isinstance(source, CachedPair):
            pair = Pair(source, job.plan, merged)
            [form] = forms
            if form.is_lowered:
                made = _make_lowered_pair(job, form, place, pair, by_weights, verify=verify)
            else:
                made = _make_pair(job, form, place, pair, verify=verify)
        else:
            subject = Subject(source, job.plan, merged)
            made = _make_files(job, forms, place, subject, by_weights, verify=verify)
    session = _session_facts(place) if verify else {}
    return replace(
        made,
        checks=(*by_weights, *made.checks),
        warnings=(*warnings, *made.warnings, *survival_warnings(survival)),
        facts={**made.facts, **session, **measured},
        survival=survival,
    )


def _refuse_weights_only(job: Job, forms: Sequence[Form]) -> None:
    """Refuse a proof without runs of a file that only runs can prove.

    Raises:
        UsageError: the precision is not fp32, or the graphs are those of an encoder and a decoder.
    """
    lowered = [form.precision.name for form in forms if form.is_lowered]
    if lowered or is_pair(job):
        what = f"--precision {','.join(lowered)}" if lowered else "--kv-cache of a pair"
        message = f"{what} is proven by runs, which --proof weights leaves out"
        raise UsageError(
            message,
            where="--proof weights",
            hint="leave it out, or --no-verify",
            cause="usage/options-contradict",
        )


def _session_facts(place: Place) -> dict[str, Any]:
    """Return how ONNX Runtime used the weights of the files."""
    from lora_export.verification.runtime.sessions import is_mapped

    is_any = any(map(is_mapped, place.files()))
    return {"session": {"weights": "mapped" if is_any else "copied"}}


def _make_files(
    job: Job,
    forms: Sequence[Form],
    place: Place,
    subject: Subject,
    before: tuple[Check, ...],
    *,
    verify: bool,
) -> Made:
    """Make and prove the files of one network, of which every lower precision needs the float32.

    before: the checks that have passed already, for the report of a failure.
    """
    full = _full(job, forms, place, subject)
    lowered = [form for form in forms if form.is_lowered]
    proven = Proven()
    if verify:
        proven = _prove_full(full, lowered[0] if lowered else forms[0])
        # A lower file is compared with this graph, so the graph must be right.
        if place.writes or lowered:
            _refuse_failed(job, place, (*before, *proven.checks), proven)
    made = [_make_lowered(place, full, form, verify=verify) for form in lowered]
    facts = [one.facts for one in made]
    whole = {"graph": graph_facts(full.exported, proven.saved)} if full.is_published else {}
    files = [file for one in made for file in one.files]
    return Made(
        (*place.listed(full.exported.files), *files),
        {**whole, **lowered_facts(facts), **proven.facts},
        (*proven.checks, *_named_checks(lowered, made)),
        (
            *proven.warnings,
            *full.exported.warnings,
            *code_warnings(facts),
            *lossy_warnings(facts),
        ),
        proven.attribution,
        proven.kept,
        unproven=proven.unproven,
    )


def _named_checks(forms: Sequence[Form], made: Sequence[Made]) -> Iterator[Check]:
    """Yield the checks of lowered files, each with its precision where there are several."""
    for form, one in zip(forms, made, strict=True):
        name = form.precision.name
        for check in one.checks:
            is_named = len(made) == 1 or check.name.startswith(name)
            yield check if is_named else replace(check, name=f"{name}: {check.name}")


def _full(job: Job, forms: Sequence[Form], place: Place, subject: Subject) -> Full:
    """Return the float32 graph; its file is written where the user asked for it."""
    from lora_export.onnx_export.export import export

    asked = [form for form in forms if not form.is_lowered]
    path = place.file(asked[0]) if asked else place.work / place.path.with_suffix(".onnx").name
    target = path if asked and place.writes else None
    settings = forms[0].settings
    exported = export(subject, target, settings, clock=job.clock)
    return Full(job, subject, exported, path, bool(asked), settings.data_name)


def _prove_full(full: Full, form: Form) -> Proven:
    """Prove the float32 graph. `form`: a lowered one that is made from it, where there is any."""
    job = full_proof(full.job, form)
    if full.is_published:
        return prove_file(full.path, full.exported, job, full.subject)
    full.link()
    return prove_file(full.path, full.exported, job, full.subject, linked=True)


def _refuse_failed(job: Job, place: Place, checks: tuple[Check, ...], proven: Proven) -> None:
    from lora_export.verification.failure import refuse_failed

    refuse_failed(checks, place.shown, proven.attribution, plan=job.plan, facts=proven.facts)


def _make_lowered(place: Place, full: Full, form: Form, *, verify: bool) -> Made:
    """Make and prove a file in a lower precision, from the proven float32 graph."""
    path = place.file(form)
    if not place.writes:
        checks, facts = prove_again(path, full, form)
        return Made((), facts, checks, ())
    files, checks, facts = lower_into(path, full, form, verify=verify)
    return Made(place.listed(files), facts, checks, ())


def _make_pair(job: Job, form: Form, place: Place, pair: Pair, *, verify: bool) -> Made:
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
        name: Full(
            job,
            networks[name],
            part,
            place.work / f"{name}.onnx",
            is_published=False,
            data_name=form.settings.data_name,
        )
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
    of_captures = (line for part in parts.values() for line in part.warnings)
    warnings = (
        *proven.warnings,
        *of_captures,
        *code_warnings([facts]),
        *lossy_warnings([facts]),
        *(rounded_twice(twice) if place.writes else ()),
    )
    return Made(
        files,
        {**facts, **proven.facts, "graphs": pair_facts(parts, proven.saved)},
        (*proven.checks, *more),
        tuple(dict.fromkeys(warnings)),
        proven.attribution,
        proven.kept,
        unproven=proven.unproven,
    )
