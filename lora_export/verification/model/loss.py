"""What rounding a model's weights costs: how far its outputs move, and which decisions change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any

from lora_export.records import Check
from lora_export.verification.model.compare import gaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    # One entry a probe.
    Runs = Sequence[Mapping[str, Array]]

PLACES = 64
"""Decisions below which their share says little."""
TOUCHED = 1e-5
"""Share of an output's size below which the adapter has no part in it."""
TOUCHED_ONCE = 1e-4
"""The same of a single element: an adapter may move one score of thousands, which no mean shows."""
_STATES = ("hidden_state", "pooler_output", "embeds", "attentions")


@dataclass(frozen=True, slots=True)
class Loss:
    """One output of a lowered model against the float32 one, over all probes.

    size: root of the mean square of the float32 output. worst, rms: of the differences; infinite
    where a number is missing, or finite on one side only. effect: as rms, of the base without
    adapter; farthest: as worst, of the base. agree, places: how often the arg-max over the last
    axis is the same, and of how many; 0 for outputs that hold no decisions.
    """

    output: str
    size: float
    worst: float
    rms: float
    effect: float
    farthest: float
    agree: int = 0
    places: int = 0

    @property
    def relative(self) -> float:
        """The rms as a share of the output's size."""
        return self.rms / self.size if self.size else 0.0 if not self.rms else inf

    @property
    def is_touched(self) -> bool:
        """Whether the adapter has a part in this output."""
        return self.effect > TOUCHED * self.size or self.farthest > TOUCHED_ONCE * self.size

    def facts(self) -> dict[str, Any]:
        """For the report and the manifest."""
        return {**asdict(self), "relative": self.relative}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted: atol + rtol * size, if given; allow_lossy: a loss above the effect."""

    atol: float | None = None
    rtol: float | None = None
    allow_lossy: bool = False


def measure(full: Runs, lowered: Runs, base: Runs) -> tuple[Loss, ...]:
    """The loss of every output.

    Args:
        full: outputs of the float32 model, one dict a probe.
        lowered: of the lowered model, on the same probes.
        base: of the base without adapter.
    """
    return tuple(_loss(name, full, lowered, base) for name in full[0])


def decisions(name: str, array: Array) -> int:
    """Places of an output at which a class or token is chosen, 0 where it holds no such scores."""
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
    """The root of the mean square of all elements."""
    import numpy as np

    total, count = 0.0, 0
    for part in parts:
        total += float(np.square(part).sum())
        count += part.size
    return sqrt(total / count) if count and isfinite(total) else (inf if count else 0.0)


def loss_checks(losses: Sequence[Loss], precision: str, limits: Limits) -> tuple[Check, ...]:
    """Whether a lowered model is still the merged one.

    It must give finite numbers where the float32 model does; where `limits` has a bound, no output
    may be farther than that from the float32 one; and unless it allows a loss, every output in
    which the adapter has a part lies nearer to the merged model than to the base: else the
    rounding outweighs what the adapter was trained for.
    """
    broken = [one for one in losses if not isfinite(one.worst)]
    checks = [
        Check(
            f"{precision}: finite where float32 is",
            not broken,
            float(len(broken)),
            0.0,
            ", ".join(one.output for one in broken),
            f"{len(losses) - len(broken)} of {len(losses)} outputs",
        )
    ]
    if limits.atol is not None or limits.rtol is not None:
        checks.append(_bound(losses, precision, limits.atol or 0.0, limits.rtol or 0.0))
    touched = [one for one in losses if one.is_touched]
    if touched and not limits.allow_lossy:
        checks.append(_nearer(touched, precision))
    return tuple(checks)


def _bound(losses: Sequence[Loss], precision: str, atol: float, rtol: float) -> Check:
    allowed = {one.output: atol + rtol * one.size for one in losses}
    far = max(losses, key=lambda one: _share(one.worst, allowed[one.output]))
    limit = allowed[far.output]
    return Check(
        f"{precision} = float32, as far as allowed",
        far.worst <= limit,
        far.worst,
        limit,
        far.output,
        "the bound is given",
    )


def _nearer(touched: Sequence[Loss], precision: str) -> Check:
    drowned = max(touched, key=lambda one: _share(one.rms, one.effect))
    passed = drowned.rms < drowned.effect
    share = _share(drowned.rms, drowned.effect)
    return Check(
        f"{precision}: nearer to merged than to base",
        passed,
        drowned.rms,
        drowned.effect,
        drowned.output,
        f"the rounding moves it by {share:.1%} of what the adapter does"
        if passed
        else "the rounding outweighs what the adapter changes: take a higher precision, or accept "
        "it with --allow-lossy",
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else inf if part else 0.0
