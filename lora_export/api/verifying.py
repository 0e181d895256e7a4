"""verify: hold a finished artefact against its manifest, or against base and adapters again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_export.api.exporting import merged_checkpoint, prove_file
from lora_export.api.proving import make_job, prove_checkpoint, prove_weights
from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.files import read_json_object
from lora_export.checkpoint.index import read_checkpoint
from lora_export.checkpoint.side_files import manifest_path
from lora_export.errors import InputError, UsageError
from lora_export.models.choose import folder_model
from lora_export.records import Check, Facts
from lora_export.report.result import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Unpack

    from lora_export.api.proving import Job, ProofOptions
    from lora_export.planning.request import AdapterOptions


def verify(
    artifact: str | Path,
    *,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    model: str | None = None,
    opset: int | None = None,
    proof: ProofOptions | None = None,
    **settings: Unpack[AdapterOptions],
) -> Report:
    """Prove `artifact` again: a folder, a .safetensors or an .onnx file.

    Without `base` and `adapters` the files are held against the digests of the manifest. With
    them everything is computed again; what the adapter does not say and no option gives is taken
    from the manifest.

    Raises:
        VerificationError: a check failed.
        UsageError: there is no manifest, and base and adapters are not named.
    """
    from lora_export.verification.proof import refuse_failed

    path = Path(artifact)
    if not path.exists():
        raise InputError("no such file or folder", where=str(path))
    if (base is None) != (not adapters):
        raise UsageError("--base and --adapter belong together: name both, or neither")
    recorded = _manifest(path)
    if recorded is None and base is None:
        raise UsageError(
            "there is no manifest beside it to hold it against",
            where=str(path),
            hint="name what it was made of: --base BASE --adapter ADAPTER",
        )
    checks = _check_digests(path, recorded) if recorded else ()
    plan = None
    warnings: tuple[str, ...] = ()
    if base is not None:
        merged_settings = cast("AdapterOptions", {**_recorded_options(recorded), **settings})
        facts = _recorded_facts(recorded)
        job = make_job(
            base, adapters, model=model, proof=proof, settings=merged_settings, recorded=facts
        )
        plan = job.plan
        more, warnings = _again(path, job, opset)
        checks = (*checks, *more)
    refuse_failed(checks, str(path))
    return Report("verify", str(path), plan, checks, warnings=warnings)


def _again(path: Path, job: Job, opset: int | None) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    if path.suffix != ".onnx":
        return prove_checkpoint(job, read_checkpoint(path))
    from lora_export.onnx_export.export import export

    source = job.source or folder_model(job.plan.base, job.proof.input)
    with tempfile.TemporaryDirectory(prefix="lora-export-") as folder:
        merged = merged_checkpoint(job, Path(folder) / "merged")
        by_weights = prove_weights(job, merged)
        exported = export(source, job.plan, merged, Path(folder) / "fresh.onnx", opset=opset)
        return (*by_weights, *prove_file(path, exported, job, source, merged)), ()


def _manifest(path: Path) -> Mapping[str, Any] | None:
    place = manifest_path(path)
    if not place.exists():
        return None
    document = read_json_object(place)
    if not isinstance(document.get("outputs"), list):
        raise InputError("is no manifest: it lists no outputs", where=str(place))
    return document


def _check_digests(path: Path, recorded: Mapping[str, Any]) -> tuple[Check, ...]:
    folder = path if path.is_dir() else path.parent
    wrong = []
    for entry in recorded["outputs"]:
        file = folder / entry["name"] if path.is_dir() or len(recorded["outputs"]) > 1 else path
        if not file.is_file() or file_sha256(file) != entry["sha256"]:
            wrong.append(entry["name"])
    detail = f"{len(recorded['outputs'])} files have the SHA-256 of the manifest"
    return (Check("digests", not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail),)


def _recorded_options(recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(recorded.get("options", {})) if recorded else {}


def _recorded_facts(recorded: Mapping[str, Any] | None) -> dict[str, Facts]:
    """Facts by module from the manifest's list of updates."""
    updates = recorded.get("updates", {}) if recorded else {}
    return {
        update["module"]: Facts(
            alpha=update["alpha"],
            fan_in_fan_out=update["fan_in_fan_out"],
            enable_lora=tuple(map(bool, update["enable_lora"])) or None,
            kind=update["kind"],
            rank=update["rank"],
            source="the manifest",
        )
        for listed in updates.values()
        for update in listed
    }
