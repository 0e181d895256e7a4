"""The model card of a merged folder: from the finished job to README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.api.recording import given_options, input_files
from lora_export.checkpoint.output.writer import write_bytes
from lora_export.report.model_card import model_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.api.job.planned_job import Job
    from lora_export.records import Check, Survival, WrittenFile


def describe(
    job: Job,
    folder: Path,
    checks: Sequence[Check],
    digests: Mapping[Path, str],
    *,
    max_shard_size: str | None,
    survival: Survival | None,
) -> tuple[WrittenFile, ...]:
    """Write the model card README.md into `folder`; write nothing where the result is one file.

    Args:
        job: the job that was carried out.
        folder: the staged folder.
        checks: all of them passed.
        digests: SHA-256 of input files by path, as in the manifest.
        max_shard_size: the option of `merge` that is not among the job's settings.
        survival: what storing left of the updates; None where nothing was verified.

    Returns:
        README.md with its size and SHA-256, or nothing.
    """
    plan = job.plan
    if plan.card is None:
        return ()
    options = given_options(job)
    if job.settings.get("hparams"):
        options["hparams"] = "FACTS"
    if max_shard_size:
        options["max_shard_size"] = max_shard_size
    base_files, adapter_files = input_files(plan, digests)
    content = model_card(
        plan,
        plan.card,
        options=options,
        base_files=base_files,
        adapter_files=adapter_files,
        checks=checks,
        survival=survival,
    )
    return (write_bytes(folder / "README.md", content),)
