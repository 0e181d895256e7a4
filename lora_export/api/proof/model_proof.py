"""The proof as a model: the merged network's outputs against the unmerged one's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.records import at_level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lora_export.api.job.planned_job import Job
    from lora_export.models.source import ModelSource
    from lora_export.records import Attribution, Check, Checkpoint
    from lora_export.verification.blame.narrowing import Suspects
    from lora_export.verification.model.tolerance import Tolerance
    from lora_export.verification.model.witnesses import Witnesses


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof says: checks, warnings, and where a failed one comes from, if that is known.

    saved: nodes and parameters that an export with the LoRA in the graph would have beside.
    """

    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    attribution: Attribution | None = None
    saved: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class ModelProof:
    """The model level's outcome: checks, what was seen, and the tolerance that was derived.

    suspects: what to look at again where a check failed. allow_noop: an adapter without effect is
    accepted.
    """

    checks: tuple[Check, ...]
    witnesses: Witnesses
    tolerance: Tolerance
    suspects: Suspects
    allow_noop: bool = False

    def proven(self, told: str = "") -> Proven:
        """The outcome, with the module that is to blame where there is one."""
        from lora_export.verification.blame.attribution import blame
        from lora_export.verification.blame.narrowing import attribute_model

        found = blame(self.checks, partial(attribute_model, self.suspects))
        return Proven(self.checks, (*((told,) if told else ()), *self.warnings), found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be told of how the level ran."""
        unresolved = "" if self.allow_noop else self.tolerance.unresolved()
        words = f"the model level does not resolve this adapter, the weights prove it: {unresolved}"
        return (*self.witnesses.told(), *([words] if unresolved else []))


def prove_model(job: Job, source: ModelSource, merged: Checkpoint) -> ModelProof:
    """Level "model": the merged model against the unmerged one on probes.

    Raises:
        FitError, UsageError, InputError: the model cannot be built or run.
    """
    from lora_export.verification.blame.narrowing import Suspects
    from lora_export.verification.model.witnesses import call_witnesses

    probes = probes_for(job, source)
    with job.clock("proof as a model"):
        witnesses = call_witnesses(source, job.plan, merged, probes, source.inputs)
    tolerance = witnesses.tolerance(atol=job.proof.atol, rtol=job.proof.rtol)
    equal = not job.plan.coupled
    checks = witnesses.checks(tolerance, equal=equal, allow_noop=job.allow_noop)
    suspects = Suspects(source, job.plan, merged, probes, job.proof.seed)
    return ModelProof(at_level("model", checks), witnesses, tolerance, suspects, job.allow_noop)


def probes_for(job: Job, source: ModelSource, rounds: int = 1) -> list[dict[str, NDArray[Any]]]:
    """The user's own inputs from an .npz file, or seeded ones in the declared domain.

    rounds: how many times the usual number of rows.
    """
    from lora_export.verification.model.decoding_probes import decoding_probes
    from lora_export.verification.model.probes import load_probes, make_probes

    if job.proof.inputs:
        return load_probes(Path(job.proof.inputs), source.inputs)
    deltas = [delta for step in job.plan.steps() for delta in step.deltas]
    tokens = dict.fromkeys(token for delta in deltas for token in delta.indices)
    if isinstance(source, CachedDecoder):
        return decoding_probes(source, job.proof.seed, list(tokens))
    return make_probes(source.inputs, job.proof.seed, list(tokens), rounds)
