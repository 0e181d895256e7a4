"""The job of an artefact that is proven again: planned again, with what its manifest records.

The manifest belongs to the file under test, so this module decides which of its facts are taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from lora_export.api.job.planned_job import make_job, plan_job
from lora_export.errors import UsageError
from lora_export.planning.request import make_request, read_inputs
from lora_export.records import Finding, at_level
from lora_export.verification.failure import refuse_failed
from lora_export.verification.files.manifest_check import check_inputs, check_outputs
from lora_export.verification.files.manifest_findings import manifest_findings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.api.job.chosen_network import Network
    from lora_export.api.job.planned_job import Job
    from lora_export.api.job.proof_options import ProofOptions
    from lora_export.checkpoint.folder.recorded import Recorded
    from lora_export.onnx_export.layout.layouts import Layout
    from lora_export.onnx_export.precision.grids import Precision
    from lora_export.planning.request import AdapterOptions
    from lora_export.records import Check
    from lora_export.report.stopwatch import Stopwatch


def recorded_job(
    path: Path,
    recorded: Recorded | None,
    base: str | Path,
    adapters: Sequence[str | Path],
    *,
    network: Network,
    proof: ProofOptions | None,
    settings: AdapterOptions,
    clock: Stopwatch,
) -> tuple[Job, tuple[Check, ...], tuple[str, ...]]:
    """Plan the merge again, with the facts of the manifest that no option gives.

    Only facts that describe the inputs are taken from the manifest. Options that let a merge accept
    more must be given again, since the manifest belongs to the file under test.

    Args:
        path: the artefact.
        recorded: its manifest, if it has one.
        base: as the user named it.
        adapters: as the user named them.
        network: the options of the network; those that are not set are taken from the manifest.
        proof: how the network is run.
        settings: the adapter options that the user gave, without defaults.
        clock: counts the stages of the command.

    Returns:
        (job, checks by the manifest, warnings that name what was taken from it).

    Raises:
        VerificationError: an input is not the one that the manifest records.
    """
    if recorded is None:
        job = make_job(base, adapters, network=network, proof=proof, settings=settings, clock=clock)
        return job, (), ()
    options: dict[str, Any] = {**recorded.options, "recipe": recorded.recipe}
    if recorded.trust_file is not None:
        options["trust_file"] = recorded.trust_file
    network, inherited = _as_recorded(network, recorded)
    taken = {key: value for key, value in options.items() if settings.get(key) is None}
    settings = cast("AdapterOptions", {**settings, **taken})
    with clock("plan"):
        request = make_request(base, adapters, settings)
        inputs = read_inputs(request)
    with clock("hash", "bytes") as seen:
        same_inputs = check_inputs(inputs.base, inputs.adapters, recorded, seen)
        same_outputs = check_outputs(path, recorded, seen)
    checks = at_level("manifest", [*same_outputs, *same_inputs])
    if not all(check.passed for check in same_inputs):  # the recorded facts are of other files
        found = manifest_findings(path, recorded, same_outputs)
        refuse_failed(checks, str(path), findings=(*found, _other_inputs(same_inputs)))
    if not settings.get("weight"):
        inputs = replace(inputs, adapters=tuple(map(recorded.weighted, inputs.adapters)))
        taken["weight"] = [adapter.weight for adapter in inputs.adapters]
    facts = {
        (str(adapter.path), module): found
        for place, known in enumerate(recorded.adapters)
        for adapter in inputs.adapters
        if adapter.digest == known.digest
        for (at, module), found in recorded.facts.items()
        if at == place
    }
    with clock("plan"):
        job = plan_job(
            request, inputs, network=network, proof=proof, settings=settings, recorded=facts
        )
    taken.update(inherited)
    usual = {"recipe": "auto", "weight": [1.0] * len(inputs.adapters)}
    named = [f"{key} {_shown(value)}" for key, value in taken.items() if usual.get(key) != value]
    return replace(job, clock=clock), checks, (_taken(", ".join(named)),) if named else ()


def _shown(value: object) -> object:
    return ", ".join(value) if isinstance(value, tuple) else value


def _other_inputs(checks: Sequence[Check]) -> Finding:
    """Return the finding of a base or an adapter that the manifest does not record."""
    names = tuple(name for check in checks if not check.passed for name in check.where.split(", "))
    message = "the base or the adapters are not those that the manifest records"
    return Finding("other-inputs", message, names)


def _taken(facts: str) -> str:
    return f"{facts}: taken from the manifest of what is verified"


def _as_recorded(network: Network, recorded: Recorded) -> tuple[Network, dict[str, Any]]:
    """Return the network with the recorded options of its graph, and these options by name."""
    inherited: dict[str, Any] = {}
    if recorded.static and not network.static:
        inherited["static"] = recorded.static
    if network.model:
        return replace(network, **inherited), inherited
    if recorded.task and not network.task:
        inherited["task"] = recorded.task
    if recorded.kv_cache and not network.kv_cache:
        inherited["kv_cache"] = True
    return replace(network, **inherited), inherited


def recorded_precision(
    recorded: Recorded | None, precision: str | None
) -> tuple[tuple[Precision, ...], tuple[str, ...]]:
    """Return the precisions to prove the files in, and a warning if the manifest names them."""
    from lora_export.onnx_export.precision.grids import find_precisions

    known = recorded.precision if recorded else "fp32"
    is_taken = precision is None and known != "fp32"
    warnings = (_taken(f"precision {known}"),) if is_taken else ()
    return find_precisions(precision or known), warnings


def recorded_layout(
    path: Path, recorded: Recorded | None, layout: str | None
) -> tuple[Layout, tuple[str, ...]]:
    """Return the layout of the artefact at `path`, and a warning if the manifest names it.

    Raises:
        UsageError: there is no such layout, or it is a folder's and the artefact is a file.
    """
    from lora_export.onnx_export.layout.layouts import find_layout

    known = recorded.layout if recorded else "onnx"
    is_taken = layout is None and known != "onnx"
    found = find_layout(layout or known)
    if found.is_folder and not path.is_dir():
        raise UsageError(
            "is a folder's, and this is a file",
            where=f"--layout {found.name}",
            hint="name the folder; or leave --layout out to prove a bare file",
            cause="usage/options-contradict",
        )
    return found, (_taken(f"layout {known}"),) if is_taken else ()
