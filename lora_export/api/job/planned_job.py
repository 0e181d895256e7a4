"""From paths and options to a job: the plan, with the network and options that prove it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from lora_export.api.job.proof_options import ProofOptions
from lora_export.models.choose import (
    class_for_task,
    factory_model,
    layers_of,
    runtime_names,
    task_warnings,
    tied_groups,
)
from lora_export.models.inputs.static_sizes import parse_static, with_static
from lora_export.planning.names.network_names import (
    NetworkNames,
    meet_network,
    whole_parts_without_values,
    without_place,
)
from lora_export.planning.request import make_request, plan_request, read_inputs
from lora_export.report.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.api.job.chosen_network import Network
    from lora_export.models.factory import FactoryModel
    from lora_export.planning.request import AdapterOptions, Inputs, Request
    from lora_export.records import Facts, MergePlan


@dataclass(frozen=True, slots=True)
class Job:
    """A plan with the options and the network that carry it out and prove it."""

    plan: MergePlan
    #: The user's factory; None where none is named.
    source: FactoryModel | None
    #: How the network is run to be proven.
    proof: ProofOptions
    #: How adapters are read and merged, as the user gave the options.
    settings: AdapterOptions
    #: Which network is run, and which graph is made of it.
    network: Network
    #: Tensors of the factory's network that neither base nor adapter holds.
    unset: tuple[str, ...] = ()
    #: Digests of the adapters that the base holds already, by its own manifest.
    merged_before: tuple[str, ...] = ()
    #: Counts the seconds of each stage of the command, and reports how far it is.
    clock: Stopwatch = field(default_factory=Stopwatch, compare=False)
    #: Whether a report shows what the models say, where a tokenizer is in the folder.
    shows_samples: bool = False

    @property
    def allow_noop(self) -> bool:
        """Return whether updates that change nothing are accepted."""
        return self.settings.get("allow_noop", False)

    @property
    def follow_links(self) -> bool:
        """Return whether links may lead out of the folders that are read."""
        return self.settings.get("follow_links", False)

    @property
    def is_proof_asked(self) -> bool:
        """Return whether an option describes the run of the model; then it must not be left out."""
        return self.proof.describes_run


def make_job(
    base: str | Path,
    adapters: Sequence[str | Path],
    *,
    network: Network,
    proof: ProofOptions | None,
    settings: AdapterOptions,
    clock: Stopwatch | None = None,
) -> Job:
    """Read base and adapters, and return the planned job.

    clock: counts the stages of the whole command; None makes one.

    Raises:
        UsageError, InputError, LimitError, FitError, StorageError: see
            planning.request.plan_request.
    """
    clock = clock or Stopwatch()
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
    """Return the job for inputs that were read.

    recorded: facts of an earlier manifest, by the adapter's path and the module.

    Raises:
        UsageError: see Network.check and ProofOptions.check.
        FitError, InputError: see planning.request.plan_request.
    """
    proof = proof or ProofOptions()
    proof.check()
    network.check(proof.input)
    task = network.task
    source = factory_model(network.model, proof.input, proof.inputs)
    if source and (sizes := parse_static(network.static)):
        source.declare(with_static(source.inputs, sizes))
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
    warnings = source.warnings() if source else task_warnings(plan.base, task)
    plan = replace(plan, warnings=(*plan.warnings, *warnings))
    unset: list[str] = []
    if source and facts:
        source.place(names, without_place(facts, plan.base.tensors()))
        unset = [*whole_parts_without_values(facts, plan), *names.nameless]
    return Job(plan, source, proof, settings, network, tuple(unset), inputs.merged_before)
