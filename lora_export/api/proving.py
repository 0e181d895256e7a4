"""What merge, onnx and verify share: the plan's proof by weights and as a model, the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.api.memory import why_too_large
from lora_export.errors import InputError, UsageError
from lora_export.models.choose import (
    class_for_task,
    factory_model,
    folder_model,
    layers_of,
    runtime_names,
    tied_groups,
    told_of_task,
    why_no_model,
    why_unloadable,
)
from lora_export.models.generation.cached_decoder import CachedDecoder
from lora_export.models.inputs.grammar import parse_inputs
from lora_export.planning.names.network_names import (
    NetworkNames,
    meet_network,
    whole_parts_without_values,
    without_place,
)
from lora_export.planning.request import make_request, plan_request, read_inputs
from lora_export.records import at_level
from lora_export.report.columns import first_names
from lora_export.report.stopwatch import Stopwatch
from lora_export.verification.runtime.sessions import find_providers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lora_export.api.chosen_network import Network
    from lora_export.models.factory import FactoryModel
    from lora_export.models.source import ModelSource
    from lora_export.planning.request import AdapterOptions, Inputs, Request
    from lora_export.records import Attribution, Check, Checkpoint, Facts, MergePlan
    from lora_export.verification.blame.narrowing import Suspects
    from lora_export.verification.model.tolerance import Tolerance
    from lora_export.verification.model.witnesses import Witnesses


@dataclass(frozen=True, slots=True)
class ProofOptions:
    """How a model is run to be proven. input: --input texts. inputs: an .npz file of probes.

    atol, rtol: instead of the derived tolerance; of a file in a lower precision, how far it may be
    from the float32 one. seed: of the probes. provider: ONNX Runtime's execution providers by
    name, the CPU's by default.
    """

    input: tuple[str, ...] = ()
    inputs: str | Path | None = None
    atol: float | None = None
    rtol: float | None = None
    seed: int = 0
    provider: tuple[str, ...] = ()

    def given(self) -> list[str]:
        """The options that were set, by their names on the command line."""
        return [f"--{f.name}" for f in fields(self) if getattr(self, f.name) != f.default]

    def check(self) -> None:
        """Refuse what could never be used, also where no model is run and nobody would look.

        Raises:
            UsageError: an input's description or a tolerance makes no sense, or a
                provider is not available here.
            InputError: the file of probes is not there.
        """
        parse_inputs(self.input)
        find_providers(self.provider)
        for name, value in (("--atol", self.atol), ("--rtol", self.rtol)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{value} is no tolerance", where=name, hint="0 or more, finite")
        if self.inputs and not Path(self.inputs).is_file():
            raise InputError("no such file", where=str(self.inputs))


@dataclass(frozen=True, slots=True)
class Job:
    """A plan with what is needed to carry it out and to prove it.

    source: the user's factory, or None where none is named. unset: tensors of parts of its network
    that neither base nor adapter holds. clock: of the stages of the command.
    """

    plan: MergePlan
    source: FactoryModel | None
    proof: ProofOptions
    settings: AdapterOptions
    network: Network
    unset: tuple[str, ...] = ()
    clock: Stopwatch = field(default_factory=Stopwatch, compare=False)

    @property
    def allow_noop(self) -> bool:
        """Whether updates that change nothing are accepted."""
        return self.settings.get("allow_noop", False)

    @property
    def is_proof_asked(self) -> bool:
        """Whether an option says how the model is to be run: then it is not left out."""
        return self.proof != ProofOptions(seed=self.proof.seed)


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


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof says: checks, warnings, and where a failed one comes from, if that is known.

    saved: nodes and parameters that an export with the LoRA in the graph would have beside.
    """

    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    attribution: Attribution | None = None
    saved: Mapping[str, int] | None = None


def make_job(
    base: str | Path,
    adapters: Sequence[str | Path],
    *,
    network: Network,
    proof: ProofOptions | None,
    settings: AdapterOptions,
) -> Job:
    """Read everything and plan; see planning.request.plan_request for what it raises."""
    clock = Stopwatch()
    with clock("plan"):
        request = make_request(base, adapters, settings)
        inputs = read_inputs(request)
        job = plan_job(request, inputs, network=network, proof=proof, settings=settings)
    return replace(job, clock=clock)


def plan_job(
    request: Request,
    inputs: Inputs,
    *,
    network: Network,
    proof: ProofOptions | None,
    settings: AdapterOptions,
    recorded: Mapping[tuple[str, str], Facts] | None = None,
) -> Job:
    """Plan what was read; recorded: facts of an earlier manifest, by adapter's path and module.

    Raises:
        UsageError: see Network.check.
    """
    proof = proof or ProofOptions()
    proof.check()
    network.check(proof.input)
    task = network.task
    source = factory_model(network.model, proof.input, proof.inputs)
    facts, names = None, NetworkNames()
    if source:
        facts, names = meet_network(source.facts(), inputs.base, inputs.adapters, request.options)
    plan = plan_request(
        request,
        facts,
        inputs=inputs,
        recorded=recorded,
        lookup=partial(tied_groups, task=task),
        runtime=partial(runtime_names, task=task),
        classes=class_for_task,
        architecture=partial(layers_of, task=task),
    )
    told = source.told() if source else told_of_task(plan.base, task)
    plan = replace(plan, warnings=(*plan.warnings, *told))
    unset: list[str] = []
    if source and facts:
        source.place(names, without_place(facts, plan.base.tensors()))
        unset = [*whole_parts_without_values(facts, plan), *names.nameless]
    return Job(plan, source, proof, settings, network, tuple(unset))


def prove_checkpoint(job: Job, merged: Checkpoint, *, foreign: bool = False) -> Proven:
    """The proof of a checkpoint that lies on disk: by weights, then as a model.

    foreign: another tool may have written it, so the files around the weights count by meaning.
    """
    from lora_export.verification.files.foreign_files import check_foreign_files
    from lora_export.verification.files.side_file_check import check_side_files

    checks = prove_weights(job, merged)
    notes: tuple[str, ...] = ()
    if job.plan.base.layout == merged.layout == "folder":
        if foreign:
            files, notes = check_foreign_files(job.plan, merged)
        else:
            files = check_side_files(job.plan, merged.root)
        checks = (*checks, *at_level("manifest", files))
    proven = prove_further(job, merged, checks)
    return replace(proven, warnings=(*notes, *proven.warnings))


def not_verified(job: Job, *, but: Sequence[str] = ()) -> tuple[str, ...]:
    """The warnings of --no-verify. but: options that had their use all the same."""
    return ("nothing was verified (--no-verify)", *_unused(job.proof, but))


def _unused(proof: ProofOptions, but: Sequence[str] = ()) -> tuple[str, ...]:
    names = [name for name in proof.given() if name not in but]
    return (f"no model was run, so {', '.join(names)} had no effect",) if names else ()


def prove_further(job: Job, merged: Checkpoint, checks: tuple[Check, ...]) -> Proven:
    """After the weights, the model where there is one.

    A model is only run on weights that are right.
    """
    if not all(check.passed for check in checks):
        return Proven(checks)
    if job.source:
        why = "" if job.is_proof_asked else _not_run(job, job.source)
        more = Proven(warnings=(why,)) if why else prove_model(job, job.source, merged).proven()
    else:
        more = _prove_folder(job, merged)
    unused = _unused(job.proof) if more.warnings and not more.checks else ()
    return Proven((*checks, *more.checks), (*more.warnings, *unused), more.attribution)


def prove_weights(job: Job, written: Checkpoint) -> tuple[Check, ...]:
    """Level "weights"; see verification.weights.whole_weights.check_weights."""
    from lora_export.verification.weights.whole_weights import check_weights

    with job.clock("proof by weights"):
        checks = check_weights(job.plan, written.tensors(), allow_noop=job.allow_noop)
    return at_level("weights", checks)


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


def _not_run(job: Job, source: FactoryModel) -> str:
    """Why the user's network is not run, where nobody asked for it; empty where it is."""
    why = source.why_no_inputs()
    if job.unset:
        why = f"neither base nor adapter holds {first_names(job.unset)} of {source.target}"
    return f"the proof is by weights only: {why}" if why else ""


def _prove_folder(job: Job, merged: Checkpoint) -> Proven:
    """Level "model" where the base folder itself gives a model, else the warning why it does not.

    Nobody asked for this level, so it is told, and not refused, that the base gives no model or
    that its inputs are not known. A base that gives one is a witness like any other.
    """
    base = merged if job.plan.reshaped else job.plan.base
    why = why_no_model(base, job.network.task) or why_too_large(base)
    if why:
        return Proven(warnings=(why,))
    try:
        source = folder_model(base, job.proof.input, job.network.task)
        if not job.plan.reshaped:
            source.load(base, full=job.plan.new_tensors(), untied=())
    except UsageError as error:
        return Proven(warnings=(f"the proof is by weights only: {error.problems[0]}",))
    except InputError as error:
        told = f"{_unloadable(error.problems[0])}; the proof is by weights only"
        return Proven(warnings=(told,))
    try:
        why = why_unloadable(base)
        return prove_model(job, source, merged).proven(_unloadable(why) if why else "")
    except UsageError as error:
        if job.is_proof_asked:
            raise  # what the user asked for is not left out in silence
        return Proven(warnings=(f"the proof is by weights only: {error.problems[0]}",))


def _unloadable(reason: object) -> str:
    return f"transformers cannot load this base, so neither the result: {reason}"
