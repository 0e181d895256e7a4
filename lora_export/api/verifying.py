"""The verb verify: it proves a finished artefact by its manifest, or from base and adapters."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.api.graph.chosen_layout import check_forms, forms_of, refuse_pair
from lora_export.api.graph.finished import Finished
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.keywords import adapter_options, checked, proof_options
from lora_export.api.job.planned_job import make_job
from lora_export.api.job.recorded_job import recorded_job, recorded_layout, recorded_precision
from lora_export.api.page_file import with_page
from lora_export.api.proof.checkpoint_proof import prove_checkpoint
from lora_export.api.proof.explaining import explained
from lora_export.api.proof.following import prove_foreign
from lora_export.checkpoint.folder.recorded import read_manifest
from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.reading import reading
from lora_export.errors import InputError, UsageError
from lora_export.models.generation.caches import PAST
from lora_export.onnx_export.capture.captures import open_captures
from lora_export.records import at_level
from lora_export.report.result import Report
from lora_export.report.stopwatch import Stopwatch
from lora_export.report.survival import size_facts, survival_facts, survival_warnings
from lora_export.verification.failure import refuse_failed
from lora_export.verification.files.manifest_check import check_outputs
from lora_export.verification.files.manifest_findings import manifest_findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Unpack

    from lora_export.api.job.keywords import OnProgress, Settings
    from lora_export.api.job.planned_job import Job
    from lora_export.api.job.proof_options import ProofOptions
    from lora_export.api.proof.following import PlanAgain
    from lora_export.api.proof.model_proof import Proven
    from lora_export.checkpoint.folder.recorded import Recorded
    from lora_export.planning.request import AdapterOptions
    from lora_export.records import Check, Finding

_WITHOUT = "make it again, or move the manifest away and prove it: --base BASE --adapter ADAPTER"


@with_page("verify")
@checked("verify")
def verify(
    artifact: str | Path,
    *,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    model: str | None = None,
    task: str | None = None,
    kv_cache: bool = False,
    static: Sequence[str] = (),
    opset: int | None = None,
    precision: str | None = None,
    layout: str | None = None,
    allow_lossy: bool = False,
    capture_cache: str | Path | None = None,
    no_capture_cache: bool = False,
    provider: Sequence[str] = (),
    report: str | Path | None = None,
    progress: OnProgress | None = None,
    **settings: Unpack[Settings],
) -> Report:
    """Prove `artifact` again: a folder, a .safetensors or an .onnx file.

    Without `base` and `adapters` the files are compared with the digests of the manifest. With
    them everything is computed again. Facts that no option gives (alpha, blocks, orientation,
    weight, recipe, rename, dtype, precision) are then taken from the manifest, with a warning.
    Options that accept more than the default are never taken from there. A merge by another tool
    has no manifest: `verify` tries every recipe.

    Example:
        Prove what another tool merged::

            verify("merged-by-peft", base="llama", adapters=["llama-lora"])

    Args:
        artifact: what `merge`, `export_onnx` or another tool wrote.
        base: what it was merged from.
        adapters: what was merged into it.
        model: see `merge`.
        task: see `merge`; None takes the manifest's.
        kv_cache: see `export_onnx`; False takes the manifest's.
        static: see `export_onnx`; none takes the manifest's.
        opset: the operator set that an .onnx file was written in; None takes the exporter's own.
        precision: the precision of an .onnx file; None takes the manifest's, else "fp32".
        layout: how the ONNX files of a folder lie; None takes the manifest's, else "onnx".
        allow_lossy: see `export_onnx`.
        capture_cache: see `export_onnx`.
        no_capture_cache: see `export_onnx`.
        provider: see `export_onnx`.
        report: the file of a page on what was found, .html or .md, also of a refusal. An earlier
            report there is replaced, any other file is not. None writes none.
        progress: see `merge`.
        dtype: see `merge`; None takes the manifest's.
        settings: see `merge`.

    Returns:
        The report, with all checks, those by the manifest first.

    Raises:
        VerificationError: a check failed; the module, tensor or file to blame is named.
        InputError: the artifact, its manifest, or an input is damaged.
        UsageError: there is no manifest, and base and adapters are not named.
        LimitError, FitError, StorageError, MissingExtraError: as for `merge`.
    """
    path = Path(artifact)
    proof = proof_options(settings, provider)
    proof.check()
    proof.check_made(verify=True)
    about = adapter_options(settings, complete=False)
    with reading(path):
        is_there = path.exists()
    if not is_there:
        raise InputError("no such file or folder", where=str(path), cause="input/missing-file")
    if (base is None) != (not adapters):
        raise UsageError(
            "--base and --adapter belong together: name both, or neither",
            cause="usage/options-contradict",
        )
    network = Network(model, task, kv_cache, tuple(static))
    _refuse_dtype(path, about)
    clock = Stopwatch(progress)
    recorded = read_manifest(path, hint=_WITHOUT)
    for_onnx: dict[str, object] = {
        "opset": opset,
        "precision": precision,
        "layout": layout,
        "allow_lossy": allow_lossy or None,
    }
    if base is None:
        proof.check_made(
            verify=False,
            left_out="verify without --base and --adapter",
            hint="name both: --base BASE --adapter ADAPTER",
        )
        unused = _unused(proof, {**about, **network.given(), **for_onnx})
        return _by_manifest(path, recorded, unused, clock)
    precisions, by_manifest = recorded_precision(recorded, precision)
    lies, also = recorded_layout(path, recorded, layout)
    by_manifest = (*by_manifest, *also)
    check_forms(lies, precisions, kv_cache=network.kv_cache or bool(recorded and recorded.kv_cache))
    job, before, inherited = recorded_job(
        path,
        recorded,
        base,
        adapters,
        network=network,
        proof=proof,
        settings=about,
        clock=clock,
    )
    job = replace(job, shows_samples=report is not None)
    refuse_pair(lies, job)
    if recorded is None:  # else the manifest names the kind of graph, or a digest fails
        _refuse_other_graph(path, job.network)
    unused = ()
    try:
        captures = open_captures(capture_cache, off=no_capture_cache)
        forms = forms_of(lies, precisions, opset, captures, allow_lossy=allow_lossy)
        artefact = Finished(path, forms, lies)
        if not artefact.is_onnx(job):
            graph = {"kv_cache": kv_cache or None, "static": static, "provider": proof.provider}
            names = _named({**for_onnx, **graph})
            unused = (f"it is no ONNX file, so {', '.join(names)} had no effect",) if names else ()
        plan_again = partial(make_job, base, adapters, network=network, proof=proof, clock=clock)
        job, proven, facts = _again(artefact, job, None if recorded else plan_again)
    except InputError:
        # A digest that fails explains the error.
        refuse_failed(before, str(path), findings=_of_manifest(path, recorded, before))
        raise
    checks = (*before, *proven.checks)
    facts = {**facts, **clock.facts()}
    refuse_failed(
        checks,
        str(path),
        proven.attribution,
        plan=job.plan,
        facts=facts,
        findings=(*proven.findings, *_of_manifest(path, recorded, before)),
    )
    lossy = survival_warnings(proven.survival)
    warnings = (*inherited, *unused, *by_manifest, *job.plan.warnings, *proven.warnings, *lossy)
    return Report(
        "verify",
        str(path),
        job.plan,
        checks,
        warnings=warnings,
        facts=facts,
        kept=proven.kept,
        unproven=proven.unproven,
    )


def _by_manifest(
    path: Path, recorded: Recorded | None, unused: tuple[str, ...], clock: Stopwatch
) -> Report:
    """Report whether the files have the digests of the manifest.

    unused: warnings of options without effect, for the report.

    Raises:
        UsageError: there is no manifest.
        VerificationError: a file has another digest than the manifest records.
    """
    if recorded is None:
        raise UsageError(
            "there is no manifest beside it to compare it with",
            where=str(path),
            hint="name what it was made of: --base BASE --adapter ADAPTER",
            cause="usage/no-manifest",
        )
    with clock("hash", "bytes") as seen:
        checks = at_level("manifest", check_outputs(path, recorded, seen))
    refuse_failed(checks, str(path), findings=manifest_findings(path, recorded, checks))
    warnings = (*_unproven(recorded), *unused)
    proof = {"passed": recorded.verified, "levels": list(recorded.levels)}
    facts = {"recorded": proof, **clock.facts()}
    return Report("verify", str(path), checks=checks, warnings=warnings, facts=facts)


def _of_manifest(
    path: Path, recorded: Recorded | None, checks: Sequence[Check]
) -> tuple[Finding, ...]:
    """Return why the files are not those of the manifest; none where there is no manifest."""
    return manifest_findings(path, recorded, checks) if recorded else ()


def _refuse_other_graph(path: Path, network: Network) -> None:
    """Refuse a graph with keys and values where --kv-cache is not given.

    Compared with the graph without them, every check would fail.

    Raises:
        UsageError: the file was written with --kv-cache, and the option is not given.
    """
    from lora_export.onnx_export.file.external import parse

    if network.kv_cache or path.suffix != ".onnx":
        return
    with suppress(InputError):  # a broken file fails a check of its own later
        if any(value.name.startswith(PAST) for value in parse(path).graph.input):
            message = "the graph takes the keys and values of earlier tokens"
            raise UsageError(
                message,
                where=str(path),
                hint="--kv-cache proves such a graph",
                cause="usage/missing-fact",
            )


def _refuse_dtype(path: Path, about: AdapterOptions) -> None:
    """Refuse --dtype for an ONNX file, whose weights --precision describes.

    Raises:
        UsageError: the option is given, and the artefact is an .onnx file.
    """
    if path.suffix == ".onnx" and about.get("dtype"):
        message = "describes a checkpoint of merge, and this is an ONNX file"
        raise UsageError(
            message,
            where="--dtype",
            hint="--precision names that of its weights",
            cause="usage/no-effect",
        )


def _named(given: Mapping[str, object]) -> list[str]:
    """Return the options that were set, by their names on the command line."""
    return [f"--{k.replace('_', '-')}" for k, v in given.items() if v not in (None, (), [])]


def _unproven(recorded: Recorded) -> tuple[str, ...]:
    """Return a warning where the manifest records no verification that passed."""
    if recorded.verified:
        return ()
    what = "a failed verification" if recorded.verified is False else "no verification"
    warning = (
        f"the manifest records {what}: nothing shows that the files were right when they were "
        "written; --base and --adapter prove it now"
    )
    return (warning,)


def _unused(proof: ProofOptions, given: Mapping[str, object]) -> tuple[str, ...]:
    """Return a warning for options that have an effect only with --base and --adapter."""
    names = _named(given) + proof.given()
    if not names:
        return ()
    return (f"without --base and --adapter, {', '.join(names)} had no effect",)


def _again(
    artefact: Finished, job: Job, plan_again: PlanAgain | None
) -> tuple[Job, Proven, dict[str, Any]]:
    """Compute everything again and compare the artefact with it.

    plan_again: plans with other settings. It is given where there is no manifest, so that another
    tool may have made the merge.

    Returns:
        (the job that was proven, its proof, facts for the report).
    """
    if artefact.is_onnx(job):
        return job, *artefact.prove(job)
    artefact.refuse_unnamed()
    merged = read_checkpoint(artefact.path, follow_links=job.follow_links)
    if plan_again:
        job, proven = prove_foreign(job, merged, plan_again)
    else:
        proven = prove_checkpoint(job, merged)
    proven = explained(job.plan, merged, proven)
    measured = {**survival_facts(proven.survival), **size_facts(proven.survival)}
    return job, proven, {**measured, **proven.facts}
