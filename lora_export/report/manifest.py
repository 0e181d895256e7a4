"""The manifest beside every artefact: its inputs, its options, and the result of its proof.

It has no time and no absolute path, so that the same inputs and options give the same bytes.
"""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from lora_export.report.document import verification_json
from lora_export.report.result import json_text, tensor_counts, updates_json
from lora_export.report.survival import survival_facts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.records import (
        Adapter,
        Check,
        KeptEffect,
        MergePlan,
        Survival,
        WrittenFile,
    )

FORMAT = 1
_PACKAGES = ("lora-export", "torch", "onnx", "onnxruntime", "onnxscript", "numpy", "transformers")


def manifest(
    plan: MergePlan,
    *,
    command: str,
    options: Mapping[str, Any],
    base_files: Sequence[WrittenFile],
    adapter_files: Sequence[Sequence[WrittenFile]],
    adapter_configs: Sequence[WrittenFile | None],
    outputs: Sequence[WrittenFile],
    checks: Sequence[Check],
    merged_before: Sequence[str] = (),
    graph: Mapping[str, Any] | None = None,
    kept: KeptEffect | None = None,
    unproven: Mapping[str, str] | None = None,
    survival: Survival | None = None,
) -> bytes:
    """Return the manifest as JSON text in UTF-8, which ends with a line break.

    Args:
        plan: what was merged.
        command: "merge" or "onnx".
        options: the settings that the user gave, by name.
        base_files: with no SHA-256 where nothing was verified: hashing takes as long as copying.
        adapter_files: one list for each adapter; the file that names the adapter comes first.
        adapter_configs: one for each adapter; None where it has no configuration.
        outputs: what was written, without the manifest itself.
        checks: empty where nothing was verified.
        merged_before: digests of adapters that the base's own manifest names.
        graph: of an ONNX file its precision, its interface and how it was run.
        kept: what rounding left of the adapter's effect; None where it was not measured.
        unproven: why a level of the proof shows nothing, by its name.
        survival: what storing left of the updates; None where nothing was verified.
    """
    places = {str(adapter.path): place for place, adapter in enumerate(plan.adapters)}
    document = {
        "format": FORMAT,
        "command": command,
        "versions": {"python": platform.python_version(), **versions()},
        "recipe": plan.recipe,
        "options": dict(options),
        "inputs": {
            "base": [_file(file) for file in base_files],
            "adapters": [
                {
                    **_file(files[0]),
                    "tensors_sha256": adapter.digest,
                    "dialect": adapter.dialect,
                    "weight": adapter.weight,
                    **({"config": _file(config)} if config else {}),
                    **_further(adapter, files[1:]),
                }
                for files, config, adapter in zip(
                    adapter_files, adapter_configs, plan.adapters, strict=True
                )
            ],
            "merged_before": list(merged_before),
        },
        "outputs": [_file(file) for file in outputs],
        "tensors": tensor_counts(plan),
        "updates": {
            step.out.name: [
                {**update, "adapter": places[update["adapter"]]} for update in updates_json(step)
            ]
            for step in plan.steps()
            if step.deltas
        },
        "full_tensors": [step.out.name for step in plan.changed() if not step.deltas],
        "edits": {name: list(edits) for name, edits in plan.edits().items()},
        "dropped": dict(plan.dropped),
        "unmatched": list(plan.unmatched),
        "choices": list(plan.choices),
        **({"onnx": dict(graph)} if graph else {}),
        **survival_facts(survival),
        "verification": _verified(checks, kept, unproven) if checks else None,
    }
    return json_text(document).encode() + b"\n"


def _verified(
    checks: Sequence[Check], kept: KeptEffect | None, unproven: Mapping[str, str] | None
) -> dict[str, Any]:
    return verification_json(tuple(checks), kept=kept, unproven=unproven)


def _further(adapter: Adapter, files: Sequence[WrittenFile]) -> dict[str, Any]:
    """Return the adapter's further files, and the tensors that --ignore left out."""
    entries = {
        "files": [_file(file) for file in files],
        "joined_sha256": adapter.joined_digest,
        "ignored": list(adapter.ignored),
    }
    return {key: value for key, value in entries.items() if value}


def _file(file: WrittenFile) -> dict[str, Any]:
    digest = {"sha256": file.sha256} if file.sha256 else {}
    return {"name": file.path, **digest, "bytes": file.size}


@cache
def versions() -> Mapping[str, str]:
    """Return the installed versions of the packages that decide an artefact's bytes.

    They are read once a process, which takes 20 ms.
    """
    installed = {name: next(iter(metadata.distributions(name=name)), None) for name in _PACKAGES}
    return {name: found.version for name, found in installed.items() if found is not None}
