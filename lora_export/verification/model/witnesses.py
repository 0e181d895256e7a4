"""The level "model": runs the unmerged model and the merged one, and measures the noise of both.

The unmerged model is the base with live low-rank branches. The user's own loralib modules are a
second witness, if the user gives them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_export.errors import FitError, InputError, UsageError, VerificationError
from lora_export.models.network.casting import to_float32
from lora_export.records import Attribution, Check
from lora_export.report.columns import first_names
from lora_export.verification.model.branches import branch_of, distinct_sites
from lora_export.verification.model.compare import distance
from lora_export.verification.model.runs import nudge, run, run_exact, run_otherwise, run_split
from lora_export.verification.model.silent_modules import (
    load_own_modules,
    missing_media,
    silent_modules,
)
from lora_export.verification.model.tolerance import Tolerance, derive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.models.subject import Subject
    from lora_export.records import InputSpec, MergePlan, TensorRef
    from lora_export.verification.formulas.signatures import LiveBranch
    from lora_export.verification.model.branches import Site
    from lora_export.verification.model.runs import Outputs, Probe


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Outputs of the torch models, one dict for each probe; in float32 but for `exact`."""

    unmerged: list[Outputs]
    """The base with live branches; see `silent` for another unmerged model."""
    exact: list[Outputs]
    """The unmerged model in float64; see `narrow`."""
    nudged: list[Outputs]
    """The unmerged model with every adapted weight moved by one ulp of its stored dtype."""
    split: list[Outputs]
    """The unmerged model, one sample at a time."""
    merged: list[Outputs]
    """The merged model."""
    base: list[Outputs]
    """The base without adapter."""
    live: list[Outputs] = field(default_factory=list)
    """The user's own loralib modules, unmerged; empty without them."""
    sites: list[Site] = field(default_factory=list)
    """One adapted layer of every form, on which the nodes of an unmerged graph are counted."""
    others: list[list[Outputs]] = field(default_factory=list)
    """Further runs as right as `unmerged`, if the network does not run in float64."""
    narrow: str = ""
    """Why the network does not run in float64, if so; `exact` has each operator in float64 then."""
    silent: list[str] = field(default_factory=list)
    """Modules that are never called; the user's own modules replace the live branches then."""

    def tolerance(self, *, atol: float | None, rtol: float | None) -> Tolerance:
        """Return the tolerance that the noise of this model allows, or the user's.

        Raises:
            UsageError: atol or rtol is negative or no number.
        """
        return derive(
            float32=self.unmerged,
            float64=self.exact,
            nudged=self.nudged,
            split=self.split,
            base=self.base,
            merged=self.merged,
            others=self.others,
            atol=atol,
            rtol=rtol,
        )

    def checks(
        self, tolerance: Tolerance, *, equal: bool, allow_noop: bool = False
    ) -> tuple[Check, ...]:
        """Return the checks of the merged model against every unmerged one, and of the effect.

        An adapter may be smaller than the noise, which is no fault. There is no check of the effect
        then, and the detail of each other check says "not resolved".

        Args:
            tolerance: of all outputs.
            equal: whether the merged model must be equal to the unmerged one.
            allow_noop: whether an adapter without effect is accepted.
        """
        unresolved = "" if allow_noop else tolerance.unresolved()
        guard = () if allow_noop or unresolved else (tolerance.effect_check(),)
        if not equal:
            return guard
        found = [
            tolerance.check("merged = unmerged (torch)", self.unmerged, self.merged),
            tolerance.check(self._exact_name(), self.exact, self.merged),
        ]
        if self.live:
            found.append(tolerance.check("merged = your own modules", self.live, self.merged))
        if unresolved:
            return tuple(replace(one, detail=f"not resolved; {one.detail}") for one in found)
        return (*found, *guard)

    def _exact_name(self) -> str:
        if self.narrow:
            return "merged = unmerged, each operator in float64"
        return "merged = unmerged in float64"

    def warnings(self) -> tuple[str, ...]:
        """Return a warning for modules without live branches, and one for noise in float32."""
        found = []
        if self.silent:
            found.append(
                f"the model's forward never calls {first_names(self.silent)}, so a live branch "
                "there would not run: your own modules are the unmerged model instead"
            )
        if self.narrow:
            found.append(
                f"the network does not run in float64 ({self.narrow}): its noise was measured in "
                "float32, by other orders of summation and by weights moved in their last place"
            )
        return tuple(found)


def call_witnesses(
    subject: Subject, probes: Sequence[Probe], specs: Sequence[InputSpec]
) -> Witnesses:
    """Run every witness on every probe; one model is in memory at a time.

    The base is the unmerged model before its branches are attached, unless a full tensor of an
    adapter replaces one of the base's.

    Args:
        subject: the merged network.
        probes: its inputs.
        specs: the declared inputs.

    Raises:
        FitError: model and checkpoints do not hold the same tensors, or an adapted module is
            never called, so that its live branch proves nothing.
        UsageError: the model cannot be run, or gives other outputs when it is run again.
        VerificationError: the model does not take the merged tensors.
    """
    import torch

    source, plan = subject.source, subject.plan
    model = load_unmerged(subject)
    is_base = plan.reshaped or plan.full_tensors() == plan.new_tensors()
    base = run(model, probes) if is_base else []
    if "torch._dynamo" in sys.modules:  # compiled code of the bare base would not call the branches
        torch.compiler.reset()
    branches = attach(source, model, plan)
    unmerged = run(model, probes)
    silent = silent_modules(branches)
    if silent:
        model = load_own_modules(source, plan, silent, missing_media(model, probes[0]))
        unmerged = run(model, probes)
    _refuse_random(model, probes[0], unmerged[0])
    split = [run_split(model, p, out, specs) for p, out in zip(probes, unmerged, strict=True)]
    exact, narrow = run_exact(model, probes)
    others = run_otherwise(model, probes) if narrow else []
    nudge(to_float32(model), source, plan)  # last: the weights stay moved
    nudged = run(model, probes)
    sites = distinct_sites(branches)
    del model, branches
    merged_outputs = run(load_merged(subject), probes)
    if not is_base:
        base = run(source.load(plan.base, full=plan.new_tensors(), untied=()), probes)
    live = None if plan.reshaped else source.load_live(plan)
    own = run(live, probes) if live is not None else []
    return Witnesses(
        unmerged, exact, nudged, split, merged_outputs, base, own, sites, others, narrow, silent
    )


def run_base(subject: Subject, probes: Sequence[Probe]) -> list[Outputs]:
    """Return the outputs of the base without adapter, for every probe."""
    plan = subject.plan
    if plan.reshaped:  # the base's own model has other outputs
        return run(load_unmerged(subject), probes)
    return run(subject.source.load(plan.base, full=plan.new_tensors(), untied=()), probes)


def run_merged(subject: Subject, probes: Sequence[Probe], dtype: str = "float32") -> list[Outputs]:
    """Return the outputs of the merged model in torch, for every probe, loaded in `dtype`."""
    return run(load_merged(subject, dtype=dtype), probes)


def load_unmerged(subject: Subject) -> nn.Module:
    """Load the base with every full tensor of the adapters, and without their updates.

    Full tensors may change the model's shape, and only the result's own config builds that. The
    merged model is then loaded, with the source of every tensor that the merge has changed.

    Raises:
        FitError, InputError, UsageError: the model cannot be built, or does not take the tensors.
    """
    plan = subject.plan
    if plan.reshaped:
        return load_merged(subject, full=plan.sources())
    return subject.source.load(plan.base, full=plan.full_tensors(), untied=plan.separated)


def load_merged(
    subject: Subject, full: Mapping[str, TensorRef] | None = None, dtype: str = "float32"
) -> nn.Module:
    """Load the merged model in `dtype`.

    full: tensors that replace those of the result, by name.

    Raises:
        VerificationError: the model does not take the result. That is a fault of the merge.
    """
    try:
        return subject.load(full, dtype=dtype)
    except (FitError, InputError) as error:
        refusal = VerificationError.of(error.problems)
        refusal.attribution = Attribution("merge", detail="the model does not take its result")
        raise refusal from error


def attach(source: ModelSource, model: nn.Module, plan: MergePlan) -> list[LiveBranch]:
    """Attach the live branches of all updates to the model's modules, and return them.

    Raises:
        FitError, UsageError: the model lacks a module, or a layer kind has no live branch.
    """
    seen = set()
    branches: list[LiveBranch] = []
    for delta in (*(d for step in plan.steps() for d in step.deltas), *plan.twins):
        # A convolution's weight may be stored under two names: one module, one branch.
        module = source.module(model, delta.module)
        key = (delta.adapter, id(module), delta.parameter)
        if key not in seen:
            seen.add(key)
            branches.append(branch_of(module, delta))
    return branches


def _refuse_random(model: nn.Module, probe: Probe, before: Outputs) -> None:
    """Refuse a model with random outputs; they would count as noise and widen the tolerance."""
    import torch

    state = torch.get_rng_state()
    [again] = run(model, [probe])
    far = distance(before, again)
    same = all(before[name].tobytes() == again[name].tobytes() for name in before if name in again)
    if not torch.equal(state, torch.get_rng_state()):
        problem = "the model draws random numbers in eval mode"
    elif far.worst and not same:
        problem = f"the model gives another {far} when it is run again"
    else:
        return
    hint = "switch dropout off in eval mode (training=self.training), keep no state between calls"
    raise UsageError(f"{problem}, so nothing can be proven", hint=hint)
