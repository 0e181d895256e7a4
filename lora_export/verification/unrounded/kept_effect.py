"""Measures how much of the adapter's effect on the outputs the rounding of its weights leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.checkpoint.tensors import TORCH_NAMES
from lora_export.records import KeptEffect
from lora_export.verification.unrounded.unrounded_model import is_narrowed
from lora_export.verification.unrounded.unrounded_tensor import is_rounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from lora_export.records import MergePlan

    #: One dict of outputs for each probe.
    Runs = Sequence[Mapping[str, NDArray[Any]]]


def kept_effect(
    plan: MergePlan, names: Iterable[str], *, base: Runs, unrounded: Runs, stored: Runs
) -> KeptEffect | None:
    """Measure the share of the adapter's effect that the stored weights keep.

    Of one output it is 1 - |stored - unrounded|^2 / |unrounded - base|^2, with the sums over all
    elements of all probes that are finite in the three runs. The least of all outputs counts.

    Args:
        plan: names the dtypes that were rounded to.
        names: the outputs in which the adapter's effect stands out of the noise.
        base: runs of the base without adapter, one dict of outputs for each probe.
        unrounded: runs of the merged model before its weights were rounded.
        stored: runs of the merged model with the weights as they are stored.

    Returns:
        The least share, from 0 to 1. None where no output shows the adapter.
    """
    shares = {name: _share(name, base, unrounded, stored) for name in names}
    found = {name: share for name, share in shares.items() if share is not None}
    if not found:
        return None
    least = min(found, key=lambda name: found[name])
    rounded = (step for step in plan.steps() if is_rounded(step) or is_narrowed(step))
    dtypes = sorted({TORCH_NAMES[step.out.dtype] for step in rounded})
    return KeptEffect(" and ".join(dtypes), max(found[least], 0.0), least)


def _share(name: str, base: Runs, unrounded: Runs, stored: Runs) -> float | None:
    """Return the share of one output; None where it has no numbers, or no effect to keep."""
    lost = effect = 0.0
    for without, exact, rounded in zip(base, unrounded, stored, strict=True):
        sides = [run.get(name) for run in (without, exact, rounded)]
        pair = _squares(*sides)
        lost, effect = lost + pair[0], effect + pair[1]
    return 1 - lost / effect if effect > 0 else None


def _squares(
    base: NDArray[Any] | None, exact: NDArray[Any] | None, stored: NDArray[Any] | None
) -> tuple[float, float]:
    """Return the sums of the squares of what was lost, and of the effect; 0 without numbers."""
    import numpy as np

    if base is None or exact is None or stored is None or exact.dtype.kind not in "fc":
        return 0.0, 0.0
    if not base.shape == exact.shape == stored.shape:
        return 0.0, 0.0
    seen = np.isfinite(base) & np.isfinite(exact) & np.isfinite(stored)
    wide = np.complex128 if exact.dtype.kind == "c" else np.float64
    without, right, there = (side[seen].astype(wide) for side in (base, exact, stored))
    lost = np.square(np.abs(there - right)).sum()
    return float(lost), float(np.square(np.abs(right - without)).sum())
