"""The record of ONNX files: their entry in the manifest, and the warnings about their losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.report.lowered import all_lowered, share_of_effect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.api.graph.forms import Form
    from lora_export.api.graph.places import Place
    from lora_export.api.job.planned_job import Job

_LARGE_SHARE = 0.5
"""The share of the adapter's effect from which on rounding gives a warning."""


def recorded_graph(
    place: Place, job: Job, forms: Sequence[Form], facts: Mapping[str, Any], *, verify: bool
) -> dict[str, Any]:
    """Return the manifest's entry of an ONNX file: its interface, how it was run, the loss.

    Of a folder it has the entry of each file.
    """
    from lora_export.onnx_export.file.interface import interface
    from lora_export.verification.runtime.sessions import find_providers

    ran: dict[str, Any] = {}
    if verify:
        providers = list(find_providers(job.proof.provider))
        ran = {"providers": providers, "session": facts["session"]}
    lossy = {"allow_lossy": True} if forms[0].allow_lossy else {}
    kept = {one["precision"]: _kept(one) for one in all_lowered(facts)}
    names = [form.precision.name for form in forms]
    if place.layout.is_folder:
        graphs = {
            place.file(form).relative_to(place.path).as_posix(): {
                **interface(place.file(form), form.precision.name),
                **kept.get(form.precision.name, {}),
            }
            for form in forms
        }
        layout = {"layout": place.layout.name, "precision": ",".join(names)}
        return {**layout, "graphs": graphs, **ran, **lossy}
    (name,) = names
    if place.path.is_dir():
        faces = {part: interface(place.path / f"{part}.onnx", name) for part in facts["graphs"]}
        return {"precision": name, "graphs": faces, **ran, **lossy, **kept.get(name, {})}
    return {**interface(place.path, name), **ran, **lossy, **kept.get(name, {})}


def _kept(lowered: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in lowered.items() if key not in {"precision", "bytes"}}


def lossy_warnings(made: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a warning for each output whose rounding is not small beside the adapter's effect.

    made: the facts of each file in a lower precision.
    """
    for facts in made:
        lowered = facts["lowered"]
        name = f"{lowered['precision']}: " if len(made) > 1 else ""
        for loss in lowered.get("loss", ()):
            share = share_of_effect(loss)
            if share is not None and share >= _LARGE_SHARE:
                yield (
                    f"{name}{loss['output']}: the rounding moves it by {loss['rms']:.2g}, the "
                    f"adapter by {loss['effect']:.2g} (rms)"
                    + (": accepted by --allow-lossy" if share >= 1 else "")
                )
