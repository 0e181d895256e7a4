"""Checks that an adapter's full tensors are finite and fit the dtype in which they are written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import iter_chunks, torch_dtype
from lora_export.errors import FitError, InputError
from lora_export.execution.casting import wider_dtype
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    import torch

    from lora_export.records import MergePlan, Step


DIVERGED = "the training may have diverged: merge an earlier checkpoint of it"
"""What to do about NaN or infinity in an adapter."""


def refuse_unusable(plan: MergePlan) -> None:
    """Refuse unusable full tensors of the adapter, before a byte is written.

    Raises:
        InputError: some hold NaN or infinity; all of them are named.
        FitError: some have values that the base's dtype cannot hold; all of them are named.
    """
    files = {path for adapter in plan.adapters for path in adapter.files()}
    steps = [s for s in plan.changed() if not s.deltas and s.source.file in files]
    checked = [(step, *_check(step)) for step in steps]
    broken = [_problem(step, "holds NaN or infinity") for step, finite, _ in checked if not finite]
    if broken:
        raise InputError.of(broken)
    large = [
        replace(
            _problem(step, f"has values that overflow {step.out.dtype}, the result's dtype"),
            hint=f"{DIVERGED}; or {wider_dtype(step.out.dtype)}",
        )
        for step, _, fits in checked
        if not fits
    ]
    if large:
        raise FitError.of(large)


def _problem(step: Step, message: str) -> Problem:
    where = f"{step.source.file}: {step.source.spec.name}"
    return Problem(message, where, DIVERGED, cause="input/not-finite")


def _check(step: Step) -> tuple[bool, bool]:
    """Return whether all values are finite, and whether they survive the cast to the output.

    Floats may be rounded by the cast but must stay finite. Other values must stay equal.
    """
    import torch

    source, target = step.source.spec.dtype, step.out.dtype
    is_float = source in FLOAT_DTYPES
    if not is_float and source == target:
        return True, True
    finite = fits = True
    for piece in iter_chunks(step.source):
        values = torch.frombuffer(bytearray(piece), dtype=torch_dtype(source))
        cast = values.to(torch_dtype(target))
        finite = finite and (not is_float or _is_finite(values))
        fits = fits and (
            _is_finite(cast) if is_float else torch.equal(cast.to(values.dtype), values)
        )
    return finite, fits


def _is_finite(values: torch.Tensor) -> bool:
    import torch

    return bool(torch.isfinite(values).all())
