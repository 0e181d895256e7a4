"""Level "model": run the unmerged model beside the merged one, and measure what noise there is.

The unmerged model is the base with live low-rank branches; where the user's own loralib modules
are at hand, they are a second witness.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError, InputError, UsageError, VerificationError
from lora_export.models.calling import call_model
from lora_export.models.casting import to_float32, to_float64
from lora_export.records import Attribution, Check, Problem
from lora_export.verification.branches import branch_of, distinct_sites
from lora_export.verification.compare import distance, join_batches
from lora_export.verification.probes import split_batch
from lora_export.verification.tolerance import Tolerance, derive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Checkpoint, Delta, InputSpec, MergePlan, TensorRef
    from lora_export.verification.branches import Live, Site

    Outputs = dict[str, NDArray[Any]]
    Probe = Mapping[str, NDArray[Any]]

_MEDIA = ("pixel_values", "input_features", "input_values")


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Outputs of the torch models, one set a probe; float32 unless said otherwise.

    unmerged: base with live branches. exact: the same in float64. nudged: the same with every
    adapted weight moved by one unit in the last place of its stored dtype. split: the same, one
    sample at a time. live: the user's own loralib modules, unmerged; empty without them. sites:
    one adapted layer of every form, which the graph's overhead is counted on.
    """

    unmerged: list[Outputs]
    exact: list[Outputs]
    nudged: list[Outputs]
    split: list[Outputs]
    merged: list[Outputs]
    base: list[Outputs]
    live: list[Outputs] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)

    def tolerance(self, *, atol: float | None, rtol: float | None) -> Tolerance:
        """The tolerance that the noise of this very model allows (or atol and rtol)."""
        return derive(
            float32=self.unmerged,
            float64=self.exact,
            nudged=self.nudged,
            split=self.split,
            base=self.base,
            merged=self.merged,
            atol=atol,
            rtol=rtol,
        )

    def checks(
        self, tolerance: Tolerance, *, equal: bool, allow_noop: bool = False
    ) -> tuple[Check, ...]:
        """The effect guard, and where they must be equal, merged against every unmerged model."""
        guard = () if allow_noop else (tolerance.effect_check(),)
        if not equal:
            return guard
        found = [
            tolerance.check("merged = unmerged (torch)", self.unmerged, self.merged),
            tolerance.check("merged = unmerged in float64", self.exact, self.merged),
        ]
        if self.live:
            found.append(tolerance.check("merged = your own modules", self.live, self.merged))
        return (*found, *guard)


def call_witnesses(
    source: ModelSource,
    plan: MergePlan,
    merged: Checkpoint,
    probes: Sequence[Probe],
    specs: Sequence[InputSpec],
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

    model = load_unmerged(source, plan, merged)
    is_base = plan.reshaped or plan.full_tensors() == plan.new_tensors()
    base = run(model, probes) if is_base else []
    if "torch._dynamo" in sys.modules:  # what torch.compile made of it would not call the branches
        torch.compiler.reset()
    branches = attach(source, model, plan)
    unmerged = run(model, probes)
    _refuse_silent(branches, _unfed(model, probes[0]))
    _refuse_random(model, probes[0], unmerged[0])
    split = [_split(model, p, out, specs) for p, out in zip(probes, unmerged, strict=True)]
    exact = run(to_float64(model), probes)
    nudge(to_float32(model), source, plan)
    nudged = run(model, probes)
    sites = distinct_sites(branches)
    del model, branches
    merged_outputs = run(load_merged(source, plan, merged), probes)
    if not is_base:
        base = run(source.load(plan.base, full=plan.new_tensors(), untied=()), probes)
    live = None if plan.reshaped else source.load_live(plan)
    own = run(live, probes) if live is not None else []
    return Witnesses(unmerged, exact, nudged, split, merged_outputs, base, own, sites)


def run_base(
    source: ModelSource, plan: MergePlan, merged: Checkpoint, probes: Sequence[Probe]
) -> list[Outputs]:
    """Outputs of the base without adapter, for every probe."""
    if plan.reshaped:  # the base's own model has other outputs
        return run(load_unmerged(source, plan, merged), probes)
    return run(source.load(plan.base, full=plan.new_tensors(), untied=()), probes)


def run_merged(
    source: ModelSource,
    plan: MergePlan,
    merged: Checkpoint,
    probes: Sequence[Probe],
    dtype: str = "float32",
) -> list[Outputs]:
    """Outputs of the merged model in torch, for every probe, loaded in `dtype`."""
    return run(load_merged(source, plan, merged, dtype=dtype), probes)


def load_unmerged(source: ModelSource, plan: MergePlan, merged: Checkpoint) -> nn.Module:
    """The base with every full tensor of the adapters, and without their updates.

    Where these change the model's shape, only the result's own configuration builds it; then every
    tensor that the merge has changed is set to what it was made of.
    """
    if plan.reshaped:
        return load_merged(source, plan, merged, full=plan.sources())
    return source.load(plan.base, full=plan.full_tensors(), untied=plan.separated)


def load_merged(
    source: ModelSource,
    plan: MergePlan,
    merged: Checkpoint,
    full: Mapping[str, TensorRef] | None = None,
    dtype: str = "float32",
) -> nn.Module:
    """The merged model; a result that the base's own model does not take is a failed proof."""
    try:
        return source.load(merged, full=full or {}, untied=plan.separated, dtype=dtype)
    except (FitError, InputError) as error:
        refusal = VerificationError.of(error.problems)
        refusal.attribution = Attribution("merge", detail="the model does not take its result")
        raise refusal from error


def attach(source: ModelSource, model: nn.Module, plan: MergePlan) -> list[Live]:
    """The live branches of all updates, put on the model's modules."""
    seen = set()
    branches: list[Live] = []
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


def _refuse_silent(branches: Sequence[Live], unfed: Sequence[str]) -> None:
    heard = [branch.delta for branch in branches if branch.calls]
    silent = [
        branch.delta.module
        for branch in branches
        if branch.calls == 0 and not any(_is_one(branch.delta, delta) for delta in heard)
    ]
    if silent and unfed:
        hint = "--inputs FILE.npz with them as well"
        message = f"without {' and '.join(unfed)} the model's forward never calls this module"
        raise UsageError.of([Problem(message, module, hint) for module in silent])
    if silent:
        hint = "its parent may read the weight directly: use loralib's own modules in --model"
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


def run(model: nn.Module, probes: Sequence[Probe]) -> list[Outputs]:
    """The model's outputs for every probe, whose floats are given in the model's own dtype."""
    import torch

    wide = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    results = []
    for probe in probes:
        tensors = {name: torch.from_numpy(array) for name, array in probe.items()}
        cast = {n: t.to(wide) if t.is_floating_point() else t for n, t in tensors.items()}
        outputs = call_model(model, cast)
        results.append({name: _array(name, tensor) for name, tensor in outputs.items()})
    return results


def _array(name: str, tensor: torch.Tensor) -> NDArray[Any]:
    try:
        # A copy: what a model returns may be a buffer that the next call overwrites.
        array: NDArray[Any] = tensor.resolve_conj().resolve_neg().numpy(force=True).copy()
    except (TypeError, RuntimeError) as error:
        hint = "let its forward return float32: the output's own rounding would hide the effect"
        dtype = str(tensor.dtype).removeprefix("torch.")
        message = f"the model returns {dtype}, which cannot be compared"
        raise UsageError(message, where=name, hint=hint) from error
    return array


def _split(model: nn.Module, probe: Probe, whole: Outputs, specs: Sequence[InputSpec]) -> Outputs:
    samples = split_batch(specs, probe)
    return join_batches(run(model, samples), whole) if len(samples) > 1 else {}


def nudge(model: nn.Module, source: ModelSource, plan: MergePlan) -> None:
    """Move every adapted weight by one unit in the last place of its stored dtype, up or down.

    The direction is drawn with a fixed seed, so that the measured noise can be repeated.
    """
    import torch

    from lora_export.checkpoint.tensors import torch_dtype
    from lora_export.verification.branches_attention import stored_parameter

    generator = torch.Generator().manual_seed(0)
    done = set()
    for step in plan.steps():
        if step.deltas:
            module = source.module(model, step.deltas[0].module)
            owner = getattr(module, "conv", module)
            leaf = step.deltas[0].parameter
            leaf = leaf if hasattr(owner, leaf) else "w"  # as planning.names finds it
            weight = stored_parameter(owner, leaf)
            if id(weight) in done:
                continue  # stored in several tensors: experts one by one, or a copy
            done.add(id(weight))
            eps = torch.finfo(torch_dtype(step.out.dtype)).eps
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            with torch.no_grad():
                weight.add_(weight.abs() * (eps / 2) * signs)
