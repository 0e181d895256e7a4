"""Attaches live low-rank branches to the base, which together are the unmerged model.

A branch is a forward hook with the adapted layer's own forward, of loralib 0.1.2 or PEFT 0.21.2. It
comes from the proof of the layer kind and shares no code with the merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

from lora_export.errors import FitError
from lora_export.execution.arithmetic import is_exact_sum
from lora_export.verification.factors import factors_of
from lora_export.verification.kinds import proof_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Delta, MergePlan
    from lora_export.verification.formulas.signatures import Factors, LiveBranch, LiveOutput


def branch_of(
    module: nn.Module, delta: Delta, *, exact: bool = False, factors: Factors | None = None
) -> LiveBranch:
    """Attach the live branch of `delta` to `module`.

    factors: those of another model's branch of the same update, which are not read again.
    exact: the factors have the values of their file, as in an exact sum; otherwise they are rounded
        to the dtype in which the library loads them.

    Raises:
        FitError: the layer kind has no live branch.
        InputError, StorageError: the factors cannot be read.
    """
    attach = proof_of(delta).live_parameter
    if attach:
        return attach(module, delta)
    return Branch(module, delta, exact=exact, factors=factors)


def attach(
    source: ModelSource,
    model: nn.Module,
    plan: MergePlan,
    like: Sequence[LiveBranch] = (),
) -> list[LiveBranch]:
    """Attach the live branches of all updates to the model's modules, and return them.

    like: the branches of another model of the same plan, whose factors are used again.

    Raises:
        FitError, UsageError: the model lacks a module, or a layer kind has no live branch.
    """
    seen = set()
    branches: list[LiveBranch] = []
    factors = {id(one.delta): one.factors for one in like if isinstance(one, Branch)}
    merged = [step for step in plan.steps() if step.deltas]
    exact = {id(d) for step in merged if is_exact_sum(step, plan.recipe) for d in step.deltas}
    for delta in (*(d for step in merged for d in step.deltas), *plan.twins):
        # A convolution's weight may be stored under two names: one module, one branch.
        module = source.module(model, delta.module)
        key = (delta.adapter, id(module), delta.parameter)
        if key not in seen:
            seen.add(key)
            read = factors.get(id(delta))
            branches.append(branch_of(module, delta, exact=id(delta) in exact, factors=read))
    return branches


class Branch:
    """A forward hook that applies one update to its layer's output, and counts its calls."""

    def __init__(
        self,
        module: nn.Module,
        delta: Delta,
        *,
        exact: bool = False,
        factors: Factors | None = None,
    ) -> None:
        """Attach to `module`; the branch computes in the dtype of the module's output.

        exact, factors: see `branch_of`.
        """
        self.delta = delta
        # The module owns the branch. A reference back would keep both alive after the model.
        self._module = ref(module)
        self.calls = 0
        #: The dtype and shape of the layer's input; None for an axis whose size has changed.
        self.taken: tuple[str, tuple[int | None, ...]] = ("", ())
        #: The factors of the update, by role.
        self.factors = factors or _narrowed(factors_of(delta, exact=exact))
        self.form = _live_output(delta)
        module.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        """Return the output of the unmerged layer."""
        x = args[0] if args else next(iter(kwargs.values()))
        self._note(x)
        self.calls += 1
        factors = {role: factor.to(output.dtype) for role, factor in self.factors.items()}
        return self.form(module, x, output, factors, self.delta)

    def key(self) -> tuple[object, ...]:
        """Return a key that is equal for two layers whose graphs would have the same nodes."""
        delta = self.delta
        shapes = tuple((role, held.spec.shape) for role, held in delta.factors.items())
        return (
            type(self._module()), delta.kind, delta.shape, shapes, delta.fan_in_fan_out,
            delta.enable_lora, delta.heads, delta.by_group, delta.rule, delta.weight, self.taken,
        )  # fmt: skip

    def _note(self, x: torch.Tensor) -> None:
        """Record the input's dtype and shape; runs in another dtype than the first do not count."""
        dtype, shape = str(x.dtype).removeprefix("torch."), tuple(x.shape)
        seen = self.taken[1]
        if not self.calls:
            self.taken = (dtype, shape)
        elif dtype == self.taken[0] and len(seen) == len(shape):
            same = [old if old == new else None for old, new in zip(seen, shape, strict=True)]
            self.taken = (dtype, tuple(same))


@dataclass(frozen=True, slots=True)
class Site:
    """A layer with its live branch, which stands for all layers of the same form."""

    module: nn.Module
    branch: Branch
    times: int
    """How many layers of the same form there are."""


def distinct_sites(branches: Sequence[LiveBranch]) -> list[Site]:
    """Return one layer of every form; none at all if a branch is on a parameter.

    A layer that is never called does not count, because no graph contains it.
    """
    groups: dict[tuple[object, ...], list[Branch]] = {}
    for branch in branches:
        if not isinstance(branch, Branch):
            return []
        if branch.calls:
            groups.setdefault(branch.key(), []).append(branch)
    sites = []
    for group in groups.values():
        module = group[0]._module()  # noqa: SLF001 - of the same file
        sites += [Site(module, group[0], len(group))] if module is not None else []
    return sites


def _narrowed(factors: Factors) -> Factors:
    """Return factors in float32 where it has all their values: half of the memory."""
    import torch

    narrow = {role: factor.float() for role, factor in factors.items()}
    same = {role: torch.equal(narrow[role].to(f.dtype), f) for role, f in factors.items()}
    return {role: narrow[role] if same[role] else factor for role, factor in factors.items()}


def _live_output(delta: Delta) -> LiveOutput:
    form = proof_of(delta).live_output
    if form is None:
        raise FitError(
            f"no live branch for the layer kind {delta.kind}",
            where=delta.module,
            cause="fit/unusable-layer",
        )
    return form
