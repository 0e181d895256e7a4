"""Level "model": run the unmerged model beside the merged one, and measure what noise there is.

The unmerged model is the base with live low-rank branches; where the user's own loralib modules
are at hand, they are a second witness.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_export.errors import FitError, InputError, UsageError, VerificationError
from lora_export.models.network.casting import to_float32
from lora_export.records import Attribution, Check, Problem
from lora_export.report.columns import first_names
from lora_export.verification.factors import changes_nothing
from lora_export.verification.model.branches import branch_of, distinct_sites
from lora_export.verification.model.compare import distance
from lora_export.verification.model.runs import nudge, run, run_exact, run_otherwise, run_split
from lora_export.verification.model.tolerance import Tolerance, derive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.models.subject import Subject
    from lora_export.records import Delta, InputSpec, MergePlan, TensorRef
    from lora_export.verification.formulas.signatures import LiveBranch
    from lora_export.verification.model.branches import Site
    from lora_export.verification.model.runs import Outputs, Probe

_MEDIA = ("pixel_values", "input_features", "input_values")


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Outputs of the torch models, one set a probe; float32 unless said otherwise.

    unmerged: base with live branches. exact: the same in float64. nudged: the same with every
    adapted weight moved by one unit in the last place of its stored dtype. split: the same, one
    sample at a time. live: the user's own loralib modules, unmerged; empty without them. sites:
    one adapted layer of every form, which the graph's overhead is counted on. narrow: why the
    network does not run in float64, else empty; then `exact` has each operator alone in float64,
    and `others` are runs as right as `unmerged`. silent: modules that are never called; then
    the user's own modules take the place of live branches.
    """

    unmerged: list[Outputs]
    exact: list[Outputs]
    nudged: list[Outputs]
    split: list[Outputs]
    merged: list[Outputs]
    base: list[Outputs]
    live: list[Outputs] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    others: list[list[Outputs]] = field(default_factory=list)
    narrow: str = ""
    silent: list[str] = field(default_factory=list)

    def tolerance(self, *, atol: float | None, rtol: float | None) -> Tolerance:
        """The tolerance that the noise of this very model allows (or atol and rtol)."""
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
        """The effect guard, and where they must be equal, merged against every unmerged model.

        An adapter may be smaller than the noise, for no fault of anyone: there is no guard then,
        and each check says that it does not resolve the adapter.
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

    def told(self) -> tuple[str, ...]:
        """Warnings where there were no live branches, or no noise in float64."""
        own = (
            f"the model's forward never calls {first_names(self.silent)}: your own modules, as "
            "they run there, are the unmerged model, without live branches of ours"
        )
        told = (own,) if self.silent else ()
        if not self.narrow:
            return told
        words = (
            f"the network does not run in float64 ({self.narrow}): its noise was measured in "
            "float32, by other orders of summation and by weights moved in their last place"
        )
        return (*told, words)


def call_witnesses(
    subject: Subject, probes: Sequence[Probe], specs: Sequence[InputSpec]
) -> Witnesses:
    """Run every witness on every probe; one model is in memory at a time.

    The base is the unmerged model before its branches are attached, where no full tensor of an
    adapter takes the place of one of the base's.

    Raises:
        FitError: model and checkpoints do not hold the same tensors, or an adapted module is
            never called, so that its live branch proves nothing.
        UsageError: the model cannot be run, or gives other outputs when it is run again.
    """
    import torch

    source, plan = subject.source, subject.plan
    model = load_unmerged(subject)
    is_base = plan.reshaped or plan.full_tensors() == plan.new_tensors()
    base = run(model, probes) if is_base else []
    if "torch._dynamo" in sys.modules:  # what torch.compile made of it would not call the branches
        torch.compiler.reset()
    branches = attach(source, model, plan)
    unmerged = run(model, probes)
    silent = _silent(branches)
    if silent:
        model = _own_modules(source, plan, silent, _unfed(model, probes[0]))
        unmerged = run(model, probes)
    _refuse_random(model, probes[0], unmerged[0])
    split = [run_split(model, p, out, specs) for p, out in zip(probes, unmerged, strict=True)]
    exact, narrow = run_exact(model, probes)
    others = run_otherwise(model, probes) if narrow else []
    nudge(to_float32(model), source, plan)
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
    """Return the base with every full tensor of the adapters, and without their updates.

    Where these change the model's shape, only the result's own configuration builds it; then every
    tensor that the merge has changed is set to what it was made of.
    """
    plan = subject.plan
    if plan.reshaped:
        return load_merged(subject, full=plan.sources())
    return subject.source.load(plan.base, full=plan.full_tensors(), untied=plan.separated)


def load_merged(
    subject: Subject, full: Mapping[str, TensorRef] | None = None, dtype: str = "float32"
) -> nn.Module:
    """Return the merged model; a result that the base's model does not take is a failed proof."""
    try:
        return subject.load(full, dtype=dtype)
    except (FitError, InputError) as error:
        refusal = VerificationError.of(error.problems)
        refusal.attribution = Attribution("merge", detail="the model does not take its result")
        raise refusal from error


def attach(source: ModelSource, model: nn.Module, plan: MergePlan) -> list[LiveBranch]:
    """The live branches of all updates, put on the model's modules."""
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


def _unfed(model: nn.Module, probe: Probe) -> list[str]:
    """The images, videos and sounds that the model takes and the probe does not have."""
    parameters = inspect.signature(model.forward).parameters
    return [name for name in parameters if name.startswith(_MEDIA) and name not in probe]


def _silent(branches: Sequence[LiveBranch]) -> list[str]:
    """Modules with an update that were never called."""
    heard = [branch.delta for branch in branches if branch.calls]
    return [
        branch.delta.module
        for branch in branches
        if branch.calls == 0
        and not any(_is_one(branch.delta, delta) for delta in heard)
        and not changes_nothing(branch.delta)
    ]


def _own_modules(
    source: ModelSource, plan: MergePlan, silent: Sequence[str], unfed: Sequence[str]
) -> nn.Module:
    """The user's own network, unmerged, where a live branch of ours would not be called.

    Raises:
        UsageError: an input is missing without which the modules are not called.
        FitError: there are no modules of the user's own.
    """
    if unfed:
        hint = "--inputs FILE.npz with them as well"
        message = f"without {' and '.join(unfed)} the model's forward never calls this module"
        raise UsageError.of([Problem(message, module, hint) for module in silent])
    own = None if plan.reshaped else source.load_live(plan)
    if own is not None:
        return own
    hint = (
        "its parent may read the weight directly: build the network of --model with the low-rank "
        "modules of its training, or leave the update out with --allow-unmatched"
    )
    message = "the model's forward never calls this module, so its live branch proves nothing"
    raise FitError.of([Problem(message, module, hint) for module in silent])


def _is_one(left: Delta, right: Delta) -> bool:
    """The same update under several names of a tied tensor, of which a model may use only some."""
    return left.adapter == right.adapter and left.factors is right.factors


def _refuse_random(model: nn.Module, probe: Probe, before: Outputs) -> None:
    """Chance would count as rounding noise and widen the tolerance."""
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
