"""Level "weights": read the result back from disk and hold every tensor against the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.checkpoint.contents import same_content
from lora_export.records import Check, TensorRef
from lora_export.verification.expected import decode, expected_update
from lora_export.verification.rounding import UNIT, element_bound, rounded, update_bound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from lora_export.records import MergePlan, Step

    Array = npt.NDArray[np.float64]

_SLOPE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class _Merged:
    """What one merged tensor shows. error: in units of the derived bound, distance: as it is."""

    name: str
    error: float
    distance: float
    gain: float
    gain_tolerance: float
    changed: bool


def check_weights(
    plan: MergePlan, written: Mapping[str, TensorRef], *, allow_noop: bool
) -> tuple[Check, ...]:
    """Hold the tensors `written` on disk against `plan`.

    Names, dtypes and shapes must be the planned ones; untouched and replaced tensors equal to the
    byte; merged ones within the rounding of the recipe around an independent float64
    recomputation, in every element and on average along the update (which shows a wrong scaling
    that rounding to half precision hides from single elements).
    """
    planned = plan.steps()
    names = _check_names(planned, written)
    if not names.passed:
        return (names,)
    whole = [step for step in planned if not step.deltas]
    merged = [_merged(step, written, plan.recipe) for step in planned if step.deltas]
    checks = [
        names,
        _check_library(written),
        _check_identity(whole, written),
        _check_elements(merged),
        _check_gain(merged),
    ]
    if not allow_noop:
        checks.append(_check_changed(merged))
    return tuple(checks)


def _check_names(planned: Sequence[Step], written: Mapping[str, TensorRef]) -> Check:
    wanted = {step.out.name: step.out for step in planned}
    wrong = [name for name, spec in wanted.items() if _spec(written, name) != spec]
    wrong += [name for name in written if name not in wanted]
    detail = f"{len(wanted)} tensors"
    return Check("names, dtypes, shapes", not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail)


def _check_library(written: Mapping[str, TensorRef]) -> Check:
    """The format's own library, which will load the files for everybody else, reads the same."""
    from safetensors import SafetensorError, safe_open

    listed: dict[Path, set[str]] = {}
    for name, ref in written.items():
        listed.setdefault(ref.file, set()).add(name)
    wrong = []
    for file, names in listed.items():
        try:
            with safe_open(file, framework="numpy") as opened:
                found = set(opened.keys())
        except SafetensorError:
            found = set()
        wrong += [file.name] if found != names else []
    detail = f"{len(listed)} files open in the safetensors library"
    return Check("readable by others", not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail)


def _spec(written: Mapping[str, TensorRef], name: str) -> object:
    return written[name].spec if name in written else None


def _check_identity(steps: Sequence[Step], written: Mapping[str, TensorRef]) -> Check:
    wrong = [step.out.name for step in steps if not _as_planned(step, written[step.out.name])]
    detail = f"{len(steps)} tensors equal to the byte"
    return Check("untouched tensors", not wrong, len(wrong), 0, ", ".join(wrong[:3]), detail)


def _as_planned(step: Step, found: TensorRef) -> bool:
    """The written tensor is the source's bytes, or its values in the base's dtype."""
    import numpy as np

    if step.source.spec.dtype == step.out.dtype:
        return same_content(step.source, found)
    return np.array_equal(rounded(decode(step.source), step.out.dtype), decode(found))


def _merged(step: Step, written: Mapping[str, TensorRef], recipe: str) -> _Merged:
    import numpy as np

    base, found = decode(step.source), decode(written[step.out.name])
    parts = [expected_update(delta) for delta in step.deltas]
    update = sum((part for part, _ in parts), start=np.zeros_like(base))
    exact_sum = recipe == "exact" or len(step.deltas) > 1 or step.deltas[0].weight != 1.0
    dtype = step.out.dtype
    magnitudes = [magnitude for _, magnitude in parts]
    update_error = update_bound(step.deltas, magnitudes, dtype, exact=exact_sum)
    exact = base + update
    error = np.abs(found - exact)
    error[~np.isfinite(error)] = np.inf
    bound = element_bound(exact, update_error, dtype)
    unit = 2 * UNIT[dtype]
    scale = np.maximum(np.maximum(np.abs(exact), np.abs(base)), 2.0**-126) * unit
    gain, gain_tolerance = _gain(found - rounded(exact, dtype), update, update_error, scale)
    return _Merged(
        step.out.name,
        float((error / bound).max(initial=0.0)),
        float(error.max(initial=0.0)),
        gain,
        gain_tolerance + _SLOPE_TOLERANCE,
        not np.array_equal(found, base),
    )


def _gain(residual: Array, update: Array, update_error: Array, ulp: Array) -> tuple[float, float]:
    """The part of the update that is too much: the slope of the residual along the update.

    residual: written minus correctly rounded. 0 for a right merge, 0.01 for a scaling 1 % too
    large, -1 for a skipped module. The tolerance is eight standard deviations of the slope when
    each element may round either way, plus the relative error of the update itself.
    """
    import numpy as np

    norm = float((update * update).sum())
    if norm == 0.0:
        return 0.0, 0.0
    variance = update_error * (update_error + ulp)
    spread = 8.0 * float(np.sqrt((variance * update * update).sum())) / norm
    systematic = float((update_error * np.abs(update)).sum()) / norm
    slope = float((residual * update).sum()) / norm
    return (slope if np.isfinite(slope) else float("inf")), spread + systematic


def _check_elements(merged: Sequence[_Merged]) -> Check:
    worst = max(merged, key=lambda one: one.error)
    far = f"{worst.name} is {worst.distance:.1e} from float64"
    headroom = f"{1 / worst.error:.1f} x headroom" if worst.error else "equal"
    detail = f"{headroom} in units of rounding, {len(merged)} tensors; {far}"
    return Check("merged elements", worst.error <= 1.0, worst.error, 1.0, worst.name, detail)


def _check_gain(merged: Sequence[_Merged]) -> Check:
    worst = max(merged, key=lambda one: abs(one.gain) / one.gain_tolerance)
    detail = f"{1 + worst.gain:.6f} of the update is in {worst.name}"
    passed = abs(worst.gain) <= worst.gain_tolerance
    return Check("scaling", passed, abs(worst.gain), worst.gain_tolerance, worst.name, detail)


def _check_changed(merged: Sequence[_Merged]) -> Check:
    same = [one.name for one in merged if not one.changed]
    detail = f"{len(merged)} planned tensors differ from the base"
    return Check("every target changed", not same, len(same), 0, ", ".join(same[:3]), detail)
