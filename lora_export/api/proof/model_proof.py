"""The proof as a model: the merged network's outputs against the unmerged one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.models.memory import is_large
from lora_export.records import at_level
from lora_export.report.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lora_export.api.job.planned_job import Job
    from lora_export.models.source import ModelSource
    from lora_export.models.subject import Subject
    from lora_export.records import Attribution, Check, Finding, KeptEffect, Survival, Unit
    from lora_export.verification.blame.narrowing import Suspects
    from lora_export.verification.model.tolerance import Tolerance
    from lora_export.verification.model.witnesses import Witnesses


FEW = 3
"""Samples of the only probe of a large model. A graph with a fixed batch fails on them."""

WORTH_A_NOTE = 0.9
"""A smaller share of the adapter's effect that is left gives a warning."""

SEARCH = "search for the cause"
"""The stage that runs parts of a model again where a check has failed."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The outcome of a proof."""

    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    #: Where a failed check comes from, if that is known.
    attribution: Attribution | None = None
    #: Nodes and parameters that an export with the LoRA in the graph would have in addition.
    saved: Mapping[str, int] | None = None
    #: What the rounding of the weights leaves of the adapter; None where it was not measured.
    kept: KeptEffect | None = None
    #: What storing left of the updates; None where that was not measured.
    survival: Survival | None = None
    #: Why a level was not run or shows nothing, by its name.
    unproven: Mapping[str, str] = field(default_factory=dict)
    #: Further results for the report, by name: docs/json.md.
    facts: Mapping[str, Any] = field(default_factory=dict)
    #: The tensors that are not as planned; None where they were not compared.
    wrong: frozenset[str] | None = None
    #: The mistakes that explain failed checks, the one that explains most first.
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelProof:
    """The outcome of the level "model"."""

    checks: tuple[Check, ...]
    #: The outputs of every model that was run.
    witnesses: Witnesses
    #: Derived from the witnesses, or given by the user.
    tolerance: Tolerance
    #: What to run again where a check failed.
    suspects: Suspects
    #: Whether an adapter without effect is accepted.
    allow_noop: bool = False
    #: What the rounding of the weights leaves of the adapter; None where nothing was rounded.
    kept: KeptEffect | None = None
    #: Counts the seconds of the search for a fault.
    clock: Stopwatch = field(default_factory=Stopwatch, compare=False)
    #: The sizes of the probes, by dynamic dimension.
    probed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    #: What base, unmerged and merged model say to a text; empty where that was not asked.
    samples: Mapping[str, Any] = field(default_factory=dict)

    def proven(self, warning: str = "") -> Proven:
        """Return the outcome, with the module to blame where one is found.

        warning: stands before the warnings of the level; empty adds none.
        """
        from lora_export.verification.blame.attribution import blame
        from lora_export.verification.blame.narrowing import attribute_model

        find = self.clock.around(SEARCH, partial(attribute_model, self.suspects))
        found = blame(self.checks, find)
        warnings = (*((warning,) if warning else ()), *self.warnings)
        return Proven(
            self.checks,
            warnings,
            found,
            kept=self.kept,
            unproven=self.unproven,
            facts=self.facts,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Return noise and effect of every output, the sizes that were run, NaN, and samples."""
        found = {
            "noise": [one.facts() for one in self.tolerance.outputs],
            "probed": self.probed,
            "nan": [{"output": name, "elements": n, "of": m} for name, n, m in self._nan()],
            "samples": self.samples,
        }
        return {name: value for name, value in found.items() if value or name == "noise"}

    def _nan(self) -> list[tuple[str, int, int]]:
        """List output, elements that are NaN in the unmerged and the merged model, and of all."""
        from lora_export.verification.model.compare import nan_counts

        counts = nan_counts(self.witnesses.unmerged, self.witnesses.unrounded)
        return [(name, *count) for name, count in counts.items()]

    @property
    def unproven(self) -> dict[str, str]:
        """Return why the level shows nothing of the adapter, by the level's name; else nothing."""
        why = self._unresolved()
        return {"model": f"does not resolve the adapter: {why}"} if why else {}

    def _unresolved(self) -> str:
        return "" if self.allow_noop else self.tolerance.unresolved()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the warnings about how the level ran."""
        from lora_export.verification.model.probed_sizes import narrow_warnings

        unresolved = self._unresolved()
        words = f"the model level does not resolve this adapter, the weights prove it: {unresolved}"
        lossy = self.kept is not None and self.kept.share < WORTH_A_NOTE
        return (
            *self.witnesses.warnings(),
            *narrow_warnings(self.suspects.subject.source.inputs, self.probed),
            *(
                f"{number:,} of {whole:,} elements of {name} are NaN in the unmerged model and in "
                "the merged one: they count as equal"
                for name, number, whole in self._nan()
            ),
            *([words] if unresolved else []),
            *([f"{self.kept}; --dtype float32 of merge would keep all of it"] if lossy else []),
        )


def prove_model(job: Job, subject: Subject) -> ModelProof:
    """Compare the merged network with the unmerged one on probes: the level "model".

    Raises:
        FitError, UsageError, InputError: the model cannot be built or run.
    """
    from lora_export.verification.blame.narrowing import Suspects
    from lora_export.verification.model.probed_sizes import probed_sizes
    from lora_export.verification.model.witnesses import call_witnesses, runs_together

    source = subject.source
    probes = probes_for(job, source)
    unit: Unit = "bytes" if runs_together(subject) else "runs"
    with job.clock("proof as a model", unit) as progress:
        witnesses = call_witnesses(subject, probes, source.inputs, progress)
    tolerance = witnesses.tolerance(atol=job.proof.atol, rtol=job.proof.rtol)
    equal = not job.plan.coupled
    checks = witnesses.checks(tolerance, equal=equal, allow_noop=job.allow_noop)
    suspects = Suspects(subject, probes, job.proof.seed)
    kept = witnesses.kept_effect(job.plan, tolerance)
    checks = at_level("model", checks)
    samples = _samples(job, subject) if all(check.passed for check in checks) else {}
    return ModelProof(
        checks,
        witnesses,
        tolerance,
        suspects,
        job.allow_noop,
        kept,
        job.clock,
        probed_sizes(source.inputs, probes),
        samples,
    )


def _samples(job: Job, subject: Subject) -> Mapping[str, Any]:
    """Return what the models say, where a report asks for it; see sample_texts."""
    if not job.shows_samples:
        return {}
    from lora_export.verification.model.sample_texts import sample_texts

    source = subject.source
    plain = source.plain if isinstance(source, CachedDecoder) else source
    with job.clock("samples"):
        return sample_texts(subject, plain)


def probes_for(job: Job, source: ModelSource, rounds: int = 1) -> list[dict[str, NDArray[Any]]]:
    """Return the probes: the user's inputs from an .npz file, or seeded ones.

    Seeded probes lie in the domain that --input declares.

    Args:
        job: names the file of probes or the seed; its adapters name tokens that must occur.
        source: the network that takes the probes.
        rounds: multiplies the usual number of rows.

    Returns:
        One mapping from input name to array for each run.

    Raises:
        InputError, UsageError: the .npz file cannot be read, or does not fit the inputs.
    """
    from lora_export.verification.model.decoding_probes import decoding_probes
    from lora_export.verification.model.probes import load_probes, make_probes

    if job.proof.inputs:
        return load_probes(Path(job.proof.inputs), source.inputs)
    deltas = [delta for step in job.plan.steps() for delta in step.deltas]
    tokens = dict.fromkeys(token for delta in deltas for token in delta.indices)
    if isinstance(source, CachedDecoder):
        return decoding_probes(source, job.proof.seed, list(tokens))
    few = FEW if rounds == 1 and is_large(job.plan.base) else 0
    return make_probes(source.inputs, job.proof.seed, list(tokens), rounds, few=few)
