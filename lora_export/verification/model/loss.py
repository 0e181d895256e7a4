"""Measures what rounding a model's weights costs: how far outputs move, which decisions change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any

from lora_export.records import Check
from lora_export.report.columns import counted, first_names
from lora_export.report.lowered import is_touched
from lora_export.report.sentences import times_allowed
from lora_export.verification.model.compare import gaps, ratio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    #: One dict of outputs for each probe.
    Runs = Sequence[Mapping[str, Array]]

PLACES = 64
"""The fewest decisions of which a share means something; fewer are measured on more rows."""

_STATES = ("hidden_state", "pooler_output", "embeds", "attentions", "present.")
"""Parts of the names of outputs that are no scores."""


@dataclass(frozen=True, slots=True)
class Loss:
    """How far one output of a lowered model is from the float32 one, over all probes.

    A difference is infinite where a number is missing, or finite on one side only.
    """

    output: str
    """The name of the output."""
    size: float
    """The root of the mean square of the float32 output."""
    worst: float
    """The largest difference of the lowered model."""
    rms: float
    """The root of the mean square of the lowered model's differences."""
    effect: float
    """The root of the mean square of the differences of the base without adapter."""
    farthest: float
    """The largest difference of the base without adapter."""
    agree: int = 0
    """At how many places the arg-max over the last axis is the same."""
    places: int = 0
    """The number of such places; 0 for an output without decisions."""

    @property
    def relative(self) -> float:
        """Return the rms as a share of the output's size."""
        return ratio(self.rms, self.size)

    @property
    def is_touched(self) -> bool:
        """Return whether the adapter changes this output."""
        return is_touched(asdict(self))

    def facts(self) -> dict[str, Any]:
        """Return the numbers for the report and the manifest."""
        return {**asdict(self), "relative": self.relative}


@dataclass(frozen=True, slots=True)
class Limits:
    """The loss that the user accepts."""

    atol: float | None = None
    """In an output's unit; with `rtol`, at most atol + rtol * size. Neither given: no bound."""
    rtol: float | None = None
    """As a share of the output's size; see `atol`."""
    allow_lossy: bool = False
    """Whether the loss may be larger than the adapter's effect."""
    cure: str = "take a higher precision, or accept it with --allow-lossy"
    """What to do where the loss is larger."""
    inner: Collection[str] = ()
    """Outputs that are no results: the keys and values of a cache, which only later steps read.
    Their error shows in the logits of those steps."""


def measure(full: Runs, lowered: Runs, base: Runs) -> tuple[Loss, ...]:
    """Measure the loss of every output.

    Args:
        full: outputs of the float32 model, one dict a probe.
        lowered: those of the lowered model, on the same probes.
        base: those of the base without adapter.
    """
    return tuple(_loss(name, full, lowered, base) for name in full[0])


def decisions(name: str, array: Array) -> int:
    """Count the places of an output at which a class or token is chosen; 0 if it has no scores."""
    if array.ndim == 0 or array.dtype.kind != "f" or any(state in name for state in _STATES):
        return 0
    return array[..., 0].size if array.shape[-1] > 1 else 0


def _loss(name: str, full: Runs, lowered: Runs, base: Runs) -> Loss:
    import numpy as np

    size = _rms(run[name][np.isfinite(run[name])].astype(np.float64) for run in full)
    pairs = [(run[name], other.get(name)) for run, other in zip(full, lowered, strict=True)]
    apart = [_apart(left, right) for left, right in pairs]
    moved = [_apart(run[name], bare.get(name)) for run, bare in zip(full, base, strict=True)]
    counted = [(a, b) for a, b in pairs if b is not None and b.shape == a.shape]
    places = sum(decisions(name, left) for left, _ in counted)
    agree = 0
    if places:
        agree = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in counted)
    return Loss(
        name, size, _largest(apart), _rms(apart), _rms(moved), _largest(moved), agree, places
    )


def _largest(parts: Sequence[Array]) -> float:
    return max((float(part.max(initial=0.0)) for part in parts), default=0.0)


def _apart(left: Array, right: Array | None) -> Array:
    import numpy as np

    if right is None or right.shape != left.shape or right.dtype.kind != left.dtype.kind:
        return np.array([inf])
    return gaps(left, right)


def _rms(parts: Iterator[Array] | Sequence[Array]) -> float:
    """Return the root of the mean square of all elements; 0 for none."""
    import numpy as np

    total, count = 0.0, 0
    for part in parts:
        total += float(np.square(part).sum())
        count += part.size
    return sqrt(total / count) if count and isfinite(total) else (inf if count else 0.0)


def loss_checks(losses: Sequence[Loss], precision: str, limits: Limits) -> tuple[Check, ...]:
    """Check that a lowered model is still the merged one.

    It must give finite numbers where the float32 model does. If `limits` has a bound, no output may
    be farther than that from the float32 one. Unless a loss is allowed, every output that the
    adapter changes must be nearer to the merged model than to the base. Otherwise the rounding
    outweighs the adapter.

    Args:
        losses: those of all outputs.
        precision: its name, for the checks.
        limits: what the user accepts.

    Returns:
        the checks of finite numbers, of the bound if there is one, and of the effect.
    """
    broken = [one for one in losses if not isfinite(one.worst)]
    checks = [
        Check(
            f"{precision}: finite where float32 is",
            not broken,
            float(len(broken)),
            0.0,
            ", ".join(one.output for one in broken),
            _finite_words(losses, broken),
        )
    ]
    if limits.atol is not None or limits.rtol is not None:
        checks.append(_bound(losses, precision, limits.atol or 0.0, limits.rtol or 0.0))
    touched = [one for one in losses if one.is_touched and one.output not in limits.inner]
    if touched and not limits.allow_lossy:
        checks.append(_nearer(touched, precision, limits.cure))
    return tuple(checks)


def _bound(losses: Sequence[Loss], precision: str, atol: float, rtol: float) -> Check:
    allowed = {one.output: atol + rtol * one.size for one in losses}
    far = max(losses, key=lambda one: ratio(one.worst, allowed[one.output]))
    limit = allowed[far.output]
    return Check(
        f"{precision} = float32, as far as allowed",
        far.worst <= limit,
        far.worst,
        limit,
        far.output,
        "" if far.worst <= limit else f"{far.output} moves by {times_allowed(far.worst, limit)}",
        basis="given",
    )


def _finite_words(losses: Sequence[Loss], broken: Sequence[Loss]) -> str:
    if not broken:
        return counted(len(losses), "output")
    names = first_names([one.output for one in broken])
    return f"{names}: NaN or infinity, where the float32 model has a number"


def _nearer(touched: Sequence[Loss], precision: str, cure: str) -> Check:
    drowned = max(touched, key=lambda one: ratio(one.rms, one.effect))
    passed = drowned.rms < drowned.effect
    return Check(
        f"{precision}: nearer to merged than to base",
        passed,
        drowned.rms,
        drowned.effect,
        drowned.output,
        ""
        if passed
        else f"the rounding outweighs what the adapter changes: it moves {drowned.output} by "
        f"{drowned.rms:.2g}, and the adapter by {drowned.effect:.2g}",
        hint=cure,
    )
