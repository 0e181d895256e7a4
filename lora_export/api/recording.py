"""From a finished job to its manifest, and the input files that the manifest names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.contents import file_sha256
from lora_export.checkpoint.folder.side_files import MANIFEST_NAME, manifest_beside
from lora_export.checkpoint.output.writer import write_bytes
from lora_export.records import WrittenFile
from lora_export.report.manifest import manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.api.job.planned_job import Job
    from lora_export.checkpoint.output.publish import Staging
    from lora_export.records import Check, KeptEffect, MergePlan, Survival


def build_manifest(
    job: Job,
    command: str,
    files: Sequence[WrittenFile],
    checks: Sequence[Check],
    digests: Mapping[Path, str],
    *,
    graph: Mapping[str, Any] | None = None,
    kept: KeptEffect | None = None,
    unproven: Mapping[str, str] | None = None,
    survival: Survival | None = None,
) -> bytes:
    """Return the manifest of a job as JSON text; see report.manifest.

    Args:
        job: the job that was carried out.
        command: "merge" or "onnx".
        files: what was written.
        checks: empty where nothing was verified.
        digests: SHA-256 of input files by path; the base's may be missing.
        graph: of an ONNX file its precision, its interface and how it was run.
        kept: what rounding left of the adapter's effect; None where it was not measured.
        unproven: why a level of the proof shows nothing, by its name.
        survival: what storing left of the updates; None where nothing was verified.
    """
    plan = job.plan
    base_files, adapter_files = input_files(plan, digests)
    return manifest(
        plan,
        command=command,
        options=given_options(job),
        base_files=base_files,
        adapter_files=adapter_files,
        adapter_configs=[
            _input(config, file_sha256(config)) if config else None
            for config in (adapter.config_file for adapter in plan.adapters)
        ],
        outputs=files,
        checks=checks,
        merged_before=job.merged_before,
        graph=graph,
        kept=kept,
        unproven=unproven,
        survival=survival,
    )


def write_manifest(stage: Staging, content: bytes) -> WrittenFile:
    """Write the manifest into a staged folder, or beside a staged file."""
    in_folder = stage.kind == "folder"
    place = stage.path / MANIFEST_NAME if in_folder else stage.beside(manifest_beside(stage.output))
    return write_bytes(place, content)


def given_options(job: Job) -> dict[str, Any]:
    """Return the settings that have a value, with the options of the graph.

    Paths are left out (--hparams, --model): the manifest names none of this machine.
    """
    graph = {k: v for k, v in job.network.given().items() if k != "model"}
    given = {**job.settings, **graph}
    return {k: v for k, v in given.items() if k != "hparams" and v not in (None, (), [])}


def input_files(
    plan: MergePlan, digests: Mapping[Path, str]
) -> tuple[list[WrittenFile], list[list[WrittenFile]]]:
    """Return the base's files and each adapter's files, with size and SHA-256.

    A file of the base has a SHA-256 only where `digests` has it: hashing a base takes as long as
    copying it.
    """
    base = [_input(shard.file, digests.get(shard.file, "")) for shard in plan.base.shards]
    adapters = [
        [_input(path, digests.get(path) or file_sha256(path)) for path in adapter.files()]
        for adapter in plan.adapters
    ]
    return base, adapters


def _input(path: Path, digest: str) -> WrittenFile:
    return WrittenFile(path.name, digest, path.stat().st_size)


def input_paths(plan: MergePlan) -> list[Path]:
    """Return every path of the inputs, which no output may replace."""
    files = [shard.file for shard in plan.base.shards]
    configs = [adapter.config_file for adapter in plan.adapters if adapter.config_file]
    adapters = [path for adapter in plan.adapters for path in adapter.files()]
    return [plan.base.root, *files, *adapters, *configs]
