"""Recognises values that passed through a narrower dtype or a quantisation before they were stored.

Such a merge is off by more than its own rounding, and by nothing that a projection shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lora_export.verification.blame.diagnosis.projection import Fit
    from lora_export.verification.blame.diagnosis.sampled_rows import SampledRows

_NARROW = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")
"""Dtypes that values may have passed through, the one with the fewest digits first."""

_DISTINCT = 17
"""Distinct values that a tensor has at least, if its dtype is to be told from them.

The weights of a norm are often all 1, which every dtype holds."""

_LOOKED_AT = 1 << 12
"""Elements among which the distinct ones are counted."""

_NEARLY_ALL = 0.99
"""The share of elements that must be as the mistake makes them."""

_BLOCK, _LEVELS = 64, 16
"""Elements that share a scale in a quantisation to 4 bits, and how many values they have."""

_INT8 = 127
"""The largest whole number of a quantisation to 8 bits, by the largest element of a row."""

_OFF_GRID = 0.1
"""The mean distance from whole numbers that is still a grid; it is 1/4 for any other values."""

_COARSE = {"float16": (5e-5, 1e-3), "bfloat16": (1e-3, 2e-2)}
"""How far, as a share of the update, one is off that was computed in a dtype."""


def narrower_dtype(sampled: SampledRows) -> str:
    """Return torch's name of a narrower dtype that holds every stored value; "" if there is none.

    The base's own values must not fit in it.
    """
    import torch

    stored = sampled.stored
    distinct = set(stored.flatten()[-_LOOKED_AT:].tolist())
    if not stored.is_floating_point() or len(distinct) < _DISTINCT:
        return ""
    for name in _NARROW:
        dtype = getattr(torch, name)
        narrower = torch.finfo(dtype).bits < torch.finfo(stored.dtype).bits
        if narrower and _holds(dtype, stored) and not _holds(dtype, sampled.base):
            return name
    return ""


def _holds(dtype: torch.dtype, values: torch.Tensor) -> bool:
    return bool((values.to(dtype).to(values.dtype) == values).all())


def dtype_of_update(sampled: SampledRows, update: torch.Tensor, fit: Fit) -> str:
    """Return torch's name of the dtype that the update was rounded to before it was added, or "".

    It is found by the values of the change where the weights are float32, else by how far the
    change is from the update.
    """
    import torch

    change, size = sampled.change, torch.maximum(sampled.base.abs(), sampled.merged.abs())
    if sampled.stored.dtype == torch.float32:
        rounding = size.mul_(torch.finfo(torch.float32).eps)
        for name in ("bfloat16", "float16"):
            if _share(change, name, rounding) > _NEARLY_ALL > 2 * _share(update, name, rounding):
                return name
    if fit.rest <= 2 * fit.noise or not fit.update:
        return ""  # no more than the rounding of the stored elements
    off = fit.rest / fit.update
    return next((name for name, (low, high) in _COARSE.items() if low <= off < high), "")


def _share(values: torch.Tensor, dtype: str, rounding: torch.Tensor) -> float:
    """Return the share of values that are those of a dtype, as far as their rounding shows."""
    import torch

    held = values.to(getattr(torch, dtype)).double()
    return float(((values - held).abs() <= rounding).double().mean())


def quantisation(values: torch.Tensor, base: torch.Tensor, noise: float) -> str:
    """Return "4-bit" or "8-bit" where values lie on the grid of a quantised tensor, else "".

    Args:
        values: whole rows in float64: of the result, or of the result less its update.
        base: the same rows of the base, which must not lie on that grid.
        noise: the largest error that rounding has left in the values.
    """
    for words, is_grid in (("4-bit", _has_few_levels), ("8-bit", _is_on_grid)):
        if is_grid(values, noise) and not is_grid(base, noise):
            return words
    return ""


def _has_few_levels(values: torch.Tensor, noise: float) -> bool:
    """Return whether blocks of elements in a row have at most 16 different values each."""
    flat = values.reshape(-1)
    blocks = flat[: len(flat) // _BLOCK * _BLOCK].view(-1, _BLOCK).sort(dim=1).values
    if not len(blocks) or values.shape[1] % _BLOCK:
        return False
    levels = 1 + (blocks.diff(dim=1) > 4 * noise).sum(dim=1)
    return float((levels <= _LEVELS).double().mean()) > _NEARLY_ALL


def _is_on_grid(values: torch.Tensor, noise: float) -> bool:
    """Return whether the elements of a row are whole multiples of its largest one / 127."""
    largest = values.abs().amax(dim=1, keepdim=True)
    if values.shape[1] < _DISTINCT or noise * _INT8 > _OFF_GRID * float(largest.median()):
        return False
    steps = (values / largest.clamp_min(1e-300)) * _INT8
    return float((steps - steps.round()).abs().mean()) < _OFF_GRID
