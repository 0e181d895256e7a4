"""Derives how much two runs of one model may differ, from how much rounding makes them differ.

A customary atol of 1e-3 lets a wrong scaling or a lost module pass. The noise of a usual model is
four orders of magnitude smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from lora_export.errors import UsageError
from lora_export.records import Check
from lora_export.report.sentences import times_allowed
from lora_export.verification.model.compare import distances, finite_distance, largest, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lora_export.verification.model.compare import Distance

    #: One dict of outputs for each probe.
    Runs = Sequence[Mapping[str, NDArray[Any]]]

FACTOR = 10.0
"""How many times its measured noise an output may move: another right run rounds elsewhere."""

EPS = 2.0**-23
"""The distance from 1 to the next float32."""


@dataclass(frozen=True, slots=True)
class OutputTolerance:
    """The numbers for one output, all but `eps` in that output's unit."""

    output: str
    """The name of the output."""
    rounding: float
    """The distance of the unmerged model in float32 to the same in float64.

    A model that does not run in float64 is compared with itself in other orders of summation.
    """
    weight_ulp: float
    """The distance that moving the adapted weights by one ulp makes."""
    batch_split: float
    """The distance of a batch to its samples, each run alone."""
    scale: float
    """The largest absolute value."""
    effect: float
    """The adapter's largest effect, |merged - base|, where both are finite."""
    override: float | None = None
    """The distance that the user allows instead of the derived one, if any."""
    eps: float = EPS
    """The distance from 1 to the next number of the output's dtype, which may be float16."""

    @property
    def floor(self) -> float:
        """Return the largest of the three kinds of rounding noise."""
        return max(self.rounding, self.weight_ulp, self.batch_split)

    @property
    def allowed(self) -> float:
        """Return the largest distance that passes: 10 * max(floor, 4 * EPS * scale).

        It is at least 2 units of the output's own dtype: two numbers that hardly differ may be
        rounded to neighbours there. The user's override takes its place.
        """
        if self.override is not None:
            return self.override
        return max(FACTOR * max(self.floor, 4 * EPS * self.scale), 2 * self.eps * self.scale)

    @property
    def needed_effect(self) -> float:
        """Return the effect below which a model without the adapter would pass the check as well.

        A small override does not lower it below the noise.
        """
        return max(FACTOR * self.floor, self.allowed)

    def facts(self) -> dict[str, Any]:
        """Return the numbers as a report has them: noise, what is allowed, and the effect."""
        return {
            "output": self.output,
            "noise": self.floor,
            "allowed": self.allowed,
            "effect": self.effect,
            "scale": self.scale,
        }

    @property
    def is_resolved(self) -> bool:
        """Return whether the adapter's effect is above the noise and above what is allowed."""
        return self.effect > self.needed_effect

    @property
    def is_drowned(self) -> bool:
        """Return whether the user allows a distance as large as the adapter's effect."""
        return self.override is not None and self.effect <= self.override


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The tolerances of all outputs of a model, in the order of the outputs."""

    outputs: tuple[OutputTolerance, ...]

    def check(self, name: str, expected: Runs, actual: Runs) -> Check:
        """Compare two runs over the same probes.

        Args:
            name: of the check, for the report.
            expected: one dict of outputs a probe.
            actual: the same, in the same order.

        Returns:
            the check of the output with the largest distance in units of its tolerance. The detail
            of a failed one says where, the basis has the source of the tolerance.
        """
        table = {one.output: one for one in self.outputs}
        if len(expected) != len(actual) or not expected:
            fault = f"{len(actual)} runs against {len(expected)} cannot be compared"
            return Check(name, passed=False, worst=float("inf"), tolerance=0.0, detail=fault)
        rows = [
            (_in_tolerances(found.worst, table.get(output)), probe, found)
            for probe, pair in enumerate(zip(expected, actual, strict=True))
            for output, found in distances(*pair).items()
        ]
        share, probe, found = max(rows, key=lambda row: row[0])
        limits = table.get(found.output)
        place = f"probe {probe}, {found}"
        return Check(
            name,
            passed=share <= 1.0,
            worst=found.worst,
            tolerance=limits.allowed if limits else 0.0,
            where=place,
            detail="" if share <= 1.0 else _failure(found, place, limits),
            basis=_basis(limits),
        )

    def effect_check(self) -> Check:
        """Check that the adapter's effect is large enough for the other checks to fail without it.

        One output that shows it is enough. `worst` is the effect and `tolerance` the needed one.
        The check passes if `worst` is ABOVE.
        """
        best = self._clearest()
        passed = best.is_resolved
        hint = f"give --atol below {best.effect:.2g}, or leave it out" if best.is_drowned else ""
        needed = best.needed_effect
        if passed:
            detail = f"it moves {best.output} by {best.effect:.2g}, and {needed:.2g} would show"
        else:
            detail = (
                f"the adapter moves {best.output} by {best.effect:.2g}, and only more than "
                f"{needed:.2g} would show: the proof is vacuous, as the base without adapter would "
                "pass as well"
            )
        return Check(
            "the adapter has an effect",
            passed=passed,
            worst=best.effect,
            tolerance=needed,
            where=best.output,
            detail=detail,
            at_least=True,
            hint="" if passed else hint,
        )

    def unresolved(self) -> str:
        """Describe an adapter whose effect is smaller than the noise; return "" for any other.

        It is also "" if the user's tolerance hides the effect, and if the noise is not finite.
        These fail the effect's check.
        """
        best = self._clearest()
        if best.is_resolved or best.is_drowned or not isfinite(best.needed_effect):
            return ""
        needed = f"{best.needed_effect:.2g} would stand out of its noise ({_noise(best)})"
        return f"it moves {best.output} by {best.effect:.2g}, and {needed}"

    def _clearest(self) -> OutputTolerance:
        """Return the output that shows the adapter best."""
        return max(self.outputs, key=lambda one: ratio(one.effect, one.needed_effect))


def derive(
    *,
    float32: Runs,
    float64: Runs,
    nudged: Runs,
    split: Runs,
    base: Runs,
    merged: Runs,
    others: Sequence[Runs] = (),
    atol: float | None = None,
    rtol: float | None = None,
) -> Tolerance:
    """Derive the tolerance of every output from runs over the same probes.

    Args:
        float32: the unmerged model (base and live branches) in float32: the reference.
        float64: the same in float64.
        nudged: the same in float32 with every adapted weight moved by one ulp.
        split: the same in float32, every sample alone, joined again. A probe's dict may lack
            outputs that cannot be joined.
        base: the base without the adapter.
        merged: the merged model.
        others: runs of the unmerged model in float32 that are as right as `float32`. Their
            distances to it are noise, as those of `float64` are.
        atol: if it or rtol is given, atol + rtol * max|output| is allowed instead.
        rtol: see atol.

    Raises:
        UsageError: atol or rtol is negative or no number.
    """
    runs = (float32, (float64, *others), nudged, split, base, merged)
    return Tolerance(tuple(_derive_one(name, runs, atol, rtol) for name in float32[0]))


def _derive_one(
    name: str,
    runs: tuple[Runs, Sequence[Runs], Runs, Runs, Runs, Runs],
    atol: float | None,
    rtol: float | None,
) -> OutputTolerance:
    float32, as_right, nudged, split, base, merged = runs
    scale = max(largest(run, name) for run in float32)
    return OutputTolerance(
        name,
        rounding=max(_apart(name, other, float32) for other in as_right),
        weight_ulp=_apart(name, nudged, float32),
        batch_split=_apart(name, split, float32),
        scale=scale,
        effect=_effect(name, base, merged),
        override=_override(atol, rtol, scale),
        eps=_eps(float32[0][name]),
    )


def _apart(name: str, left: Runs, right: Runs) -> float:
    """Return the largest distance of one output over all probes in which both sides have it."""
    return max(
        (
            distances({name: one[name]}, {name: other[name]})[name].worst
            for one, other in zip(left, right, strict=True)
            if name in one and name in other
        ),
        default=0.0,
    )


def _effect(name: str, base: Runs, merged: Runs) -> float:
    pairs = [(one[name], other.get(name)) for one, other in zip(base, merged, strict=True)]
    return max(
        (
            finite_distance(one, other)
            for one, other in pairs
            if other is not None and one.shape == other.shape
        ),
        default=0.0,
    )


def _eps(values: NDArray[Any]) -> float:
    import numpy as np

    half = values.dtype == np.float16
    return float(np.finfo(np.float16).eps) if half else EPS


def _override(atol: float | None, rtol: float | None, scale: float) -> float | None:
    for option, value in (("--atol", atol), ("--rtol", rtol)):
        if value is not None and not (isfinite(value) and value >= 0):
            raise UsageError(
                f"{value} is no tolerance",
                where=option,
                hint="give a number >= 0",
                cause="usage/option-value",
            )
    if atol is None and rtol is None:
        return None
    return (atol or 0.0) + (rtol or 0.0) * scale


def _in_tolerances(worst: float, limits: OutputTolerance | None) -> float:
    """Return a distance in units of its tolerance; infinity if one of both is not finite."""
    if limits is None or not isfinite(worst) or not isfinite(limits.allowed):
        return float("inf")
    return ratio(worst, limits.allowed)


def _failure(found: Distance, place: str, limits: OutputTolerance | None) -> str:
    """Return what is wrong with the output that is farthest off, as a sentence."""
    if found.detail:
        return f"the outputs cannot be the same at {place}: {found.detail}"
    if limits is None:
        return f"no tolerance is known for the output {found.output}"
    if not isfinite(limits.allowed):
        return f"{found.output} holds NaN, or infinities that come and go with rounding"
    return f"the outputs differ at {place} by {times_allowed(found.worst, limits.allowed)}"


def _basis(limits: OutputTolerance | None) -> str:
    """Return where the tolerance comes from; empty where there is none."""
    if limits is None or not isfinite(limits.allowed):
        return ""
    return "given" if limits.override is not None else f"noise: {_noise(limits)}"


def _noise(limits: OutputTolerance) -> str:
    return (
        f"rounding {limits.rounding:.1e}, weights' ulp {limits.weight_ulp:.1e}, "
        f"batch {limits.batch_split:.1e}"
    )
