"""The level "model": what the unmerged model and the merged one gave, and the noise of both.

The unmerged model is the base with live low-rank branches. The user's own loralib modules are a
second witness, if the user gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_export.models.memory import is_large
from lora_export.report.columns import first_names
from lora_export.report.stopwatch import unseen
from lora_export.verification.model.compare import shifted
from lora_export.verification.model.in_turn import run_in_turn
from lora_export.verification.model.loading import is_streamed
from lora_export.verification.model.together import run_together
from lora_export.verification.model.tolerance import Tolerance, derive
from lora_export.verification.unrounded.kept_effect import kept_effect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.models.subject import Subject
    from lora_export.records import Check, InputSpec, KeptEffect, MergePlan
    from lora_export.report.stopwatch import Advance
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
    """The unmerged model with every adapted weight moved by one ulp of float32."""
    split: list[Outputs]
    """The unmerged model, one sample at a time."""
    merged: list[Outputs]
    """The merged model, with the weights that are stored."""
    unrounded: list[Outputs]
    """The merged model before its weights were rounded; `merged` itself where none was."""
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
            merged=self.unrounded,
            others=self.others,
            atol=atol,
            rtol=rtol,
        )

    def checks(
        self, tolerance: Tolerance, *, equal: bool, allow_noop: bool = False
    ) -> tuple[Check, ...]:
        """Return the checks of the merged model against every unmerged one, and of the effect.

        The merged weights are those before the rounding to half precision. What was stored is their
        rounding: the weight level proves that for every element, and `kept_effect` measures it.

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
        name = "merged before rounding" if self.is_rounded else "merged"
        found = [
            tolerance.check(f"{name} = {side}", expected, self.unrounded)
            for side, expected in (
                ("unmerged (torch)", self.unmerged),
                (self._exact_name(), self.exact),
                ("your own modules", self.live),
            )
            if expected
        ]
        if unresolved:
            return tuple(_unresolved(one) for one in found)
        return (*found, *guard)

    def _exact_name(self) -> str:
        return "unmerged, each operator in float64" if self.narrow else "unmerged in float64"

    @property
    def is_rounded(self) -> bool:
        """Return whether the merge rounded its weights to half precision."""
        return self.unrounded is not self.merged

    def as_stored(self) -> tuple[str, list[Outputs]]:
        """Return the outputs that the unmerged model would have with the stored weights' rounding.

        They are those of `unmerged`, plus the measured difference that the rounding makes. A file
        of the stored weights must give them.

        Returns:
            a name for checks, and one dict for each probe.
        """
        if not self.is_rounded:
            return "unmerged", self.unmerged
        moved = [
            {name: shifted(run[name], before.get(name), after.get(name)) for name in run}
            for run, before, after in zip(self.unmerged, self.unrounded, self.merged, strict=True)
        ]
        return "unmerged, as stored", moved

    def kept_effect(self, plan: MergePlan, tolerance: Tolerance) -> KeptEffect | None:
        """Measure what the rounding of the weights leaves of the adapter's effect.

        It is None where nothing was rounded, or where no output shows the adapter.
        """
        if not self.is_rounded:
            return None
        shown = [one.output for one in tolerance.outputs if one.is_resolved]
        return kept_effect(
            plan, shown, base=self.base, unrounded=self.unrounded, stored=self.merged
        )

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


def runs_together(subject: Subject) -> bool:
    """Return whether the witnesses run at once: those of a large model that can be streamed."""
    large = subject.source.prefers_streaming and is_large(subject.plan.base)
    return large and is_streamed(subject)


def _unresolved(check: Check) -> Check:
    """Return the check with the words that a passed one shows nothing of the adapter."""
    words = "not resolved: the adapter's effect is below the noise"
    return replace(check, detail=check.detail or words)


def call_witnesses(
    subject: Subject,
    probes: Sequence[Probe],
    specs: Sequence[InputSpec],
    progress: Advance = unseen,
) -> Witnesses:
    """Run every witness on every probe.

    The witnesses of a large model run at once, and share the reading of its weights. Of a small one
    they run in turn: one model is in memory at a time.

    Args:
        subject: the merged network.
        probes: its inputs.
        specs: the declared inputs.
        progress: called with the work done so far, and with all of it: bytes of weights where the
            witnesses run at once, else witnesses.

    Raises:
        FitError: model and checkpoints do not hold the same tensors, or an adapted module is
            never called, so that its live branch proves nothing.
        UsageError: the model cannot be run, or gives other outputs when it is run again.
        VerificationError: the model does not take the merged tensors.
    """
    run = run_together if runs_together(subject) else run_in_turn
    return Witnesses(**run(subject, probes, specs, progress))
