"""The record of an ONNX file: its entry in the manifest, and the warnings about its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.api.graph.forms import Form
    from lora_export.api.job.planned_job import Job

_LARGE_SHARE = 0.5
"""The share of the adapter's effect from which on rounding gives a warning."""


def recorded_graph(
    path: Path, job: Job, form: Form, facts: Mapping[str, Any], *, verify: bool
) -> dict[str, Any]:
    """Return the manifest's entry of an ONNX file: its interface, how it was run, the loss.

    path: the .onnx file, or the folder of two, whose entry has one interface for each.
    """
    from lora_export.onnx_export.file.interface import interface
    from lora_export.verification.runtime.sessions import find_providers

    name = form.precision.name
    ran: dict[str, Any] = {}
    if verify:
        providers = list(find_providers(job.proof.provider))
        ran = {"providers": providers, "session": facts["session"]}
    lossy = {"allow_lossy": True} if form.allow_lossy else {}
    if path.is_dir():
        faces = {part: interface(path / f"{part}.onnx", name) for part in facts["graphs"]}
        return {"precision": name, "graphs": faces, **ran, **lossy, **_kept(facts)}
    return {**interface(path, name), **ran, **lossy, **_kept(facts)}


def _kept(facts: Mapping[str, Any]) -> dict[str, Any]:
    lowered = facts.get("lowered", {})
    return {key: value for key, value in lowered.items() if key not in {"precision", "bytes"}}


def lossy_warnings(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a warning for each output whose rounding is not small beside the adapter's effect."""
    return tuple(
        f"{loss['output']}: the rounding moves it by {loss['rms']:.2g}, the adapter by "
        f"{loss['effect']:.2g} (rms)"
        + (": accepted by --allow-lossy" if loss["rms"] >= loss["effect"] else "")
        for loss in facts.get("lowered", {}).get("loss", ())
        if loss["effect"] and loss["rms"] >= _LARGE_SHARE * loss["effect"]
    )
