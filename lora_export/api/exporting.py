"""The verb onnx: it reads base and adapters, and publishes one proven ONNX file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.api.graph.chosen_layout import (
    check_forms,
    check_network,
    forms_of,
    layout_warnings,
)
from lora_export.api.graph.encoder_pair import is_pair
from lora_export.api.graph.int8_codes import check_codes, with_chosen_codes
from lora_export.api.graph.making import make_graph, traced_model
from lora_export.api.graph.needs import needs, refuse_too_large, why_too_large
from lora_export.api.graph.places import Place
from lora_export.api.graph.recorded_graph import recorded_graph
from lora_export.api.graph.runtime_folder import write_around
from lora_export.api.job.chosen_network import Network
from lora_export.api.job.keywords import adapter_options, checked, proof_options
from lora_export.api.job.planned_job import make_job
from lora_export.api.page_file import with_page
from lora_export.api.proof.expected import not_proven
from lora_export.api.recording import build_manifest, input_paths, write_manifest
from lora_export.api.space import refuse_too_little
from lora_export.checkpoint.folder.side_files import manifest_beside
from lora_export.checkpoint.output.publish import staging
from lora_export.checkpoint.output.targets import check_folder
from lora_export.errors import UsageError
from lora_export.models.choose import why_no_model
from lora_export.onnx_export.capture.captures import open_captures
from lora_export.onnx_export.layout.layouts import find_layout
from lora_export.report.result import Report
from lora_export.report.stopwatch import Stopwatch
from lora_export.shown import shell_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from lora_export.api.graph.forms import Form
    from lora_export.api.job.keywords import OnProgress, Settings
    from lora_export.api.job.planned_job import Job
    from lora_export.api.space import Space
    from lora_export.checkpoint.output.publish import Staging
    from lora_export.onnx_export.layout.layouts import Layout


@with_page("onnx")
@checked("onnx")
def export_onnx(
    base: str | Path,
    adapters: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    model: str | None = None,
    task: str | None = None,
    kv_cache: bool = False,
    static: Sequence[str] = (),
    opset: int | None = None,
    precision: str = "fp32",
    int8: str | None = None,
    layout: str = "onnx",
    allow_lossy: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    force: bool = False,
    capture_cache: str | Path | None = None,
    no_capture_cache: bool = False,
    provider: Sequence[str] = (),
    report: str | Path | None = None,
    progress: OnProgress | None = None,
    **settings: Unpack[Settings],
) -> Report:
    """Write the merged model as ONNX, and prove it in ONNX Runtime against both torch models.

    The graph is the base's own: merging adds no node and no initializer. Weights of 1 GiB or more
    in all are written as external data, into one file beside the .onnx file.

    Example:
        A Hugging Face folder names its network; for a loralib file you name yours::

            export_onnx("bert", ["bert-lora"], "bert.onnx")
            export_onnx("base.pt", ["lora.pt"], "net.onnx", model="net.py:build")

    Args:
        base: a folder, a weight file, or a shard index.
        adapters: files or folders, of PEFT, loralib, litgpt, or with alpha beside the factors.
            Several are summed from the unmerged base.
        output: the .onnx file, or the folder of a `layout`, or with `kv_cache` of an
            encoder-decoder the folder of two; must not exist unless `force`. A `dry_run` needs
            none.
        model: "package.module:function" or "file.py:function", which names the function that
            builds your network. Its code is run. None builds a Hugging Face folder's own class
            (extra hf).
        task: what the network does, such as "text-classification". transformers' class for this
            task is built instead of the one that config.json names.
        kv_cache: the graph of a decoder takes the keys and values of earlier tokens, and gives
            them with its own added: past_key_values.0.key (batch, heads, past, size),
            present.0.key, and so on. Of an encoder-decoder two graphs are made.
        static: dimensions of the inputs that are fixed, such as "sequence=512". Some networks
            (Funnel, Mamba) can be traced for one size only.
        opset: ONNX operator set; None takes the exporter's own.
        precision: "fp32", "fp16", "int8", "int8-weights" or "int4". The lower ones are made from
            the merged weights, after the float32 graph is proven. With `layout` "hf" several, such
            as "fp32,int8": all are made from one capture.
        int8: the codes of precision "int8": "signed" ones are fast where the processor has VNNI,
            and may overflow on x86 without it; "unsigned" ones are the same everywhere. None
            takes signed ones, unless they overflow on this processor.
        layout: "onnx" writes a bare file. "hf" writes the folder that transformers.js and Optimum
            load: onnx/model.onnx, onnx/model_quantized.onnx and so on, with the model's own files.
            "genai" writes the folder that onnxruntime-genai loads, and needs `kv_cache`.
        allow_lossy: accept a lower precision whose rounding outweighs the adapter.
        verify: prove by weights, as a model, in ONNX Runtime and by the static audit.
        dry_run: return the plan, and the bytes that the export takes on disk and in memory; write
            nothing.
        force: replace an earlier export at `output`.
        capture_cache: the folder in which captured graphs of Hugging Face folders are kept; None
            takes the user's cache.
        no_capture_cache: capture again, and keep nothing.
        provider: ONNX Runtime's execution providers to verify with; empty takes the CPU's.
        report: the file of a page on what was found, .html or .md, also of a refusal. An earlier
            report there is replaced, any other file is not. None writes none.
        progress: see `merge`.
        settings: how adapters are read and merged, and how the network is run to be proven. See
            `lora_export.api.job.keywords.Settings`, or the command's options of the same names.

    Returns:
        The report: `facts["graph"]` has the graph's nodes, initializers and hash, and what the
        merge saves against the LoRA in the graph.

    Raises:
        UsageError, InputError, LimitError, FitError, VerificationError, OutputError, StorageError,
        MissingExtraError: as for `merge`; a network that cannot be built or captured is a
            UsageError or an InputError.
    """
    from lora_export.onnx_export.capture.trace import check_opset
    from lora_export.onnx_export.precision.grids import find_precisions

    asked = find_layout(layout)
    precisions = find_precisions(precision)
    check_forms(asked, precisions, kv_cache=kv_cache)
    check_codes(precisions, int8)
    check_opset(opset)
    proof = proof_options(settings, provider)
    proof.check()
    proof.check_made(verify=verify)
    network = Network(model, task, kv_cache, tuple(static))
    if output:
        check_folder(Path(output))
    job = make_job(
        base,
        adapters,
        network=network,
        proof=proof,
        settings=adapter_options(settings),
        clock=Stopwatch(progress),
    )
    job = replace(job, shows_samples=report is not None)
    target = Path(output) if output else None
    space = needs(job, precisions, target, verify=verify)
    pair = is_pair(job)
    check_network(asked, job)
    warnings = (*job.plan.warnings, *layout_warnings(asked, job))
    job = replace(job, plan=replace(job.plan, warnings=warnings))
    if target:
        _check_name(target, asked, pair=pair)
    if dry_run:
        return _planned(job, target, space, verify=verify)
    if target is None:
        raise UsageError(
            "no output is named",
            hint="-o OUT, or --dry-run to see the plan",
            cause="usage/output-name",
        )
    refuse_too_large(space, target, verify=verify)
    if not job.plan.reshaped:
        with job.clock("plan"):
            traced_model(job, job.plan.base)  # refuse before the merge what cannot be built
    captures = open_captures(capture_cache, off=no_capture_cache)
    precisions = with_chosen_codes(precisions, int8)
    forms = forms_of(asked, precisions, opset, captures, allow_lossy=allow_lossy)
    is_folder = pair or asked.is_folder
    with staging(
        target,
        force=force,
        inputs=input_paths(job.plan),
        kind="folder" if is_folder else "file",
        beside=() if is_folder else (manifest_beside(target),),
    ) as stage:
        made = _export_into(stage, job, forms, asked, space, verify=verify)
    return replace(made, output=str(target))


def _planned(job: Job, target: Path | None, space: Space, *, verify: bool) -> Report:
    """Return the report of a dry run, with a warning where the export does not fit into memory.

    Raises:
        UsageError, InputError, MissingExtraError: no network can be built of the base.
    """
    if not job.source and why_no_model(job.plan.base, job.network.task):
        traced_model(job, job.plan.base)  # refuses; a network that can be built is not built here
    why = why_too_large(space)
    warnings = (*job.plan.warnings, *((why,) if why else ()))
    place = str(target or "")
    facts = {**space.facts(), **({} if verify else not_proven())}
    return Report("onnx", place, job.plan, warnings=warnings, facts=facts, dry_run=True)


def _check_name(target: Path, layout: Layout, *, pair: bool) -> None:
    """Refuse an output whose suffix is of another kind: `verify` and runtimes go by the suffix.

    Raises:
        UsageError: a folder that is named *.onnx, or a file that is not.
    """
    named = target.suffix == ".onnx"
    is_folder = pair or layout.is_folder
    if is_folder and named:
        what = "--kv-cache of an encoder-decoder writes a folder of two files"
        message = f"--layout {layout.name} writes a folder" if layout.is_folder else what
        raise UsageError(
            message,
            where=str(target),
            hint=f"-o {shell_word(str(target.with_suffix('')))}",
            cause="usage/output-name",
        )
    if not is_folder and not named:
        message = "the name of an ONNX file ends in .onnx"
        raise UsageError(
            message,
            where=str(target),
            hint=f"-o {shell_word(f'{target}.onnx')}",
            cause="usage/output-name",
        )


def _export_into(
    stage: Staging,
    job: Job,
    forms: Sequence[Form],
    layout: Layout,
    space: Space,
    *,
    verify: bool,
) -> Report:
    from lora_export.execution.digests import hash_files
    from lora_export.verification.failure import refuse_failed

    refuse_too_little(space, stage.output)
    work, shown = stage.folder / "merged", str(stage.output)
    place = Place(stage.path, work, shown, writes=True, layout=layout)
    place.make_folder()
    made = make_graph(job, forms, place, verify=verify)
    refuse_failed(made.checks, shown, made.attribution, plan=job.plan, facts=made.facts)
    shutil.rmtree(work)
    written = (*made.files, *write_around(job, forms, place))
    if stage.kind == "file":
        for file in made.files[1:]:  # external data, named by its content
            stage.announce(file.path)
    shards = [shard.file for shard in job.plan.base.shards] if verify else []
    with job.clock("hash", "bytes") as progress:
        digests = hash_files(shards, 1, progress)
    graph = recorded_graph(place, job, forms, made.facts, verify=verify)
    record = build_manifest(
        job,
        "onnx",
        written,
        made.checks,
        digests,
        graph=graph,
        kept=made.kept,
        survival=made.survival,
        unproven=made.unproven,
    )
    written = (*written, write_manifest(stage, record))
    with job.clock("publish"):
        stage.publish()
    return Report(
        "onnx",
        str(stage.output),
        job.plan,
        made.checks,
        written,
        (*job.plan.warnings, *made.warnings),
        {**made.facts, "onnx": graph, **space.facts(), **job.clock.facts()},
        kept=made.kept,
        unproven=made.unproven,
    )
