"""The export of an encoder-decoder with --kv-cache: two graphs in a folder, proven together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.api.proof.model_proof import SEARCH, Proven, prove_model
from lora_export.models.subject import Subject
from lora_export.records import at_level

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.api.job.planned_job import Job
    from lora_export.api.proof.model_proof import ModelProof
    from lora_export.models.generation.cached_pair import CachedPair
    from lora_export.onnx_export.export import Exported
    from lora_export.onnx_export.settings import ExportSettings
    from lora_export.records import Check, Checkpoint, MergePlan
    from lora_export.report.stopwatch import Stopwatch

    Parts = Mapping[str, Exported]


def is_pair(job: Job) -> bool:
    """Return whether the export is the folder of an encoder and its decoder."""
    return job.network.kv_cache and bool(job.plan.base.config.get("is_encoder_decoder"))


@dataclass(frozen=True, slots=True)
class Pair:
    """An encoder-decoder that becomes two graphs, and the merged weights that both hold."""

    #: Both networks; the model as transformers builds it is its `plain`.
    source: CachedPair
    #: How every merged tensor is made of base and adapters.
    plan: MergePlan
    #: The merged weights, read back from disk.
    merged: Checkpoint

    @property
    def whole(self) -> Subject:
        """Return the network that is proven."""
        return Subject(self.source, self.plan, self.merged)

    @property
    def plain(self) -> Subject:
        """Return the network as transformers builds it."""
        return Subject(self.source.plain, self.plan, self.merged)

    def parts(self) -> dict[str, Subject]:
        """Return the network of each graph, by the file's name without suffix."""
        parts = self.source.parts()
        return {name: Subject(part, self.plan, self.merged) for name, part in parts.items()}


def export_pair(
    pair: Pair, folder: Path | None, settings: ExportSettings, clock: Stopwatch
) -> tuple[dict[str, Exported], int]:
    """Write both files into `folder`; with None make everything but the files.

    Returns:
        The exports by the files' names, and the bytes of weights that both graphs use.

    Raises:
        InputError, UsageError: see onnx_export.capture.trace.capture.
        FitError: an adapted weight has no place in either graph.
    """
    from lora_export.onnx_export.export import export

    settings = replace(settings, whole=False)
    made = {
        name: export(part, folder / f"{name}.onnx" if folder else None, settings, clock=clock)
        for name, part in pair.parts().items()
    }
    return made, _account(pair, made)


def _account(pair: Pair, parts: Parts) -> int:
    """Return the bytes of the weights that both graphs use, in float32 as both hold them.

    Raises:
        FitError: an adapted weight is used by neither graph.
    """
    from lora_export.onnx_export.export import refuse_unused
    from lora_export.onnx_export.stored_weights import stored_dtype

    model = pair.plain.load(dtype=stored_dtype(pair.merged))
    unused = [part.unused for part in parts.values()]
    refuse_unused(pair.plain, model, frozenset.intersection(*unused))
    left_out = frozenset.union(*unused)
    both = {
        tensor.data_ptr(): tensor.numel() * (4 if tensor.is_floating_point() else tensor.itemsize)
        for name, tensor in model.state_dict().items()
        if name not in left_out
    }
    return sum(both.values())


def stored_twice(count: int) -> tuple[str, ...]:
    """Return a warning where both files hold the same weights; `count` is their size in bytes."""
    if not count:
        return ()
    return (f"{count:,} bytes of weights are used by both graphs, and are in both files",)


def rounded_twice(count: int) -> tuple[str, ...]:
    """Return a warning where both lowered files hold the same weights; `count` is as above."""
    if not count:
        return ()
    return (f"{count:,} bytes of float32 weights are used by both graphs, and rounded in both",)


def prove_pair(folder: Path, parts: Parts, job: Job, pair: Pair, *, linked: bool = False) -> Proven:
    """Prove both files: the torch models, each file's static audit, then both in ONNX Runtime.

    Args:
        folder: holds both files.
        parts: the exports that the files must equal, by name.
        job: the job that they were made by.
        pair: the network with its base and merged weights.
        linked: as for `prove_file`.

    Raises:
        FitError, UsageError, InputError: the torch model cannot be built or run.
    """
    from lora_export.onnx_export.file.audit import audit, check_readable
    from lora_export.verification.blame.attribution import blame, by_checks
    from lora_export.verification.blame.narrowing import attribute_model

    by_model = prove_model(job, pair.whole)
    checks, readable = by_model.checks, True
    for name, part in parts.items():
        path = folder / f"{name}.onnx"
        with job.clock("static audit"):
            static = (
                check_readable(path)
                if linked
                else audit(path, expected=part.weights, base=part.topology, inputs=part.inputs)
            )
        named = [replace(check, name=f"{name}: {check.name}") for check in static]
        checks = (*checks, *at_level("file", named))
        readable = readable and all(check.passed for check in static[:2])
    if readable:
        checks = (*checks, *_prove_runtime(folder, job, pair, by_model))
    if not all(check.passed for check in by_model.checks):
        find = partial(attribute_model, by_model.suspects)
        found = blame(checks, job.clock.around(SEARCH, find))
    else:
        found = blame(checks, by_checks)
    return Proven(checks, by_model.warnings, found, kept=by_model.kept, facts=by_model.facts)


def _prove_runtime(folder: Path, job: Job, pair: Pair, by_model: ModelProof) -> tuple[Check, ...]:
    from lora_export.verification.runtime.encoder_decoder import check_answers, run_pair
    from lora_export.verification.runtime.sessions import find_providers, opener_on

    seen, tolerance = by_model.witnesses, by_model.tolerance
    probes, opener = by_model.suspects.probes, opener_on(find_providers(job.proof.provider))
    with job.clock("runtime"):
        outputs = run_pair(folder, pair.source, probes, opener)
    name, unmerged = seen.as_stored()
    sides = {"merged": seen.merged, name: () if job.plan.coupled else unmerged}
    checks = []
    for side, runs in sides.items():
        expected = [{name: run[name] for name in outputs[0]} for run in runs]
        if expected:
            checks.append(tolerance.check(f"ONNX Runtime = {side}", expected, outputs))
    with job.clock("generation"):
        model = pair.plain.open()
        checks += check_answers(folder, pair.source, model, tolerance, probes, opener=opener)
    return at_level("runtime", checks)


def pair_facts(parts: Parts, saved: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the facts of each graph for the report, by the files' names."""
    return {name: graph_facts(part, saved) for name, part in parts.items()}


def graph_facts(exported: Exported, saved: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the facts of a graph for the report.

    They are its size, hash and opset, how it was captured ("new" or "cached"), and what the merge
    saves against the LoRA in the graph.
    """
    topology = exported.topology
    return {
        "nodes": topology.nodes,
        "initializers": topology.initializers,
        "hash": topology.hash,
        "opset": exported.opset,
        "capture": exported.captured,
        "saved": saved,
    }
