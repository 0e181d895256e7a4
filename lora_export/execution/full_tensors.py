"""Whole tensors of the adapter must be finite, and must fit the dtype in which they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.checkpoint.tensors import iter_chunks, torch_dtype
from lora_export.errors import FitError, InputError
from lora_export.records import FLOAT_DTYPES, Problem

if TYPE_CHECKING:
    import torch

    from lora_export.records import MergePlan, Step


def refuse_unusable(plan: MergePlan) -> None:
    """Look at every tensor that the adapter replaces or adds whole, before a byte is written.

    Raises:
        InputError: one holds NaN or infinity.
        FitError: one has values that the base's dtype cannot hold.
    """
    files = {path for adapter in plan.adapters for path in adapter.files()}
    steps = [s for s in plan.changed() if not s.deltas and s.source.file in files]
    looked = [(step, *_look(step)) for step in steps]
    broken = [_problem(step, "holds NaN or infinity") for step, finite, _ in looked if not finite]
    if broken:
        raise InputError.of(broken)
    large = [
        _problem(step, f"has values that overflow {step.out.dtype}, the base's dtype")
        for step, _, fits in looked
        if not fits
    ]
    if large:
        raise FitError.of(large)


def _problem(step: Step, message: str) -> Problem:
    where = f"{step.source.file}: {step.source.spec.name}"
    return Problem(message, where, "did training diverge?")


def _look(step: Step) -> tuple[bool, bool]:
    """(all values are finite, all of them survive the cast to the output's dtype)."""
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
