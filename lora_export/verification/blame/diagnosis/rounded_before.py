"""Tells a merge that was rounded once from one whose base was rounded before the update was added.

PEFT does the latter where a base of float32 is loaded in half precision and merged in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.verification.blame.diagnosis.projection import update_at, updates_at
from lora_export.verification.factors import factors_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from lora_export.records import Step
    from lora_export.verification.blame.diagnosis.sampled_rows import SampledRows

_NAMES = ("bfloat16", "float16")
"""Dtypes in which a base is loaded to save memory."""

_SLACK = 1 + 2**-6
"""How much of half a step an element may be off: the sum itself was rounded to float32 before."""

_NEARLY_ALL = 0.99
"""The share of elements that must be as the mistake makes them."""


def rounded_before(step: Step, recipe: str, sampled: SampledRows, update: torch.Tensor) -> str:
    """Return torch's name of the dtype that the base was rounded to before the merge, or "".

    It is the dtype of the result, and the base has values that it does not hold.

    Raises:
        InputError, StorageError: a file of an adapter is damaged or cannot be read.
    """
    name = str(sampled.stored.dtype).removeprefix("torch.")
    rounded = sampled.base.to(sampled.stored.dtype).double()
    if name not in _NAMES or bool((rounded == sampled.base).all()):
        return ""
    right = share_near(sampled, sampled.base + update)
    for other in _updates(step, recipe, replace(sampled, base=rounded)):
        if share_near(sampled, rounded + other) > max(_NEARLY_ALL, right):
            return name
    return ""


def _updates(step: Step, recipe: str, sampled: SampledRows) -> Iterator[torch.Tensor]:
    """Yield the update on a rounded base as PEFT computes it there, in each of its three ways.

    The factors may be rounded as well (`autocast_adapter_dtype=False`), and the update may be
    (`safe_merge=True`).
    """
    dtype = sampled.stored.dtype
    whole = _total(updates_at(step, recipe, sampled))
    yield whole
    yield whole.to(dtype).double()
    parts = []
    for delta in step.deltas:
        factors = factors_of(delta, exact=False).items()
        rounded = {role: factor.to(dtype).to(factor.dtype) for role, factor in factors}
        parts.append(update_at(delta, rounded, sampled))
    yield _total(parts).to(dtype).double()


def _total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum(parts[1:], start=parts[0])


def share_near(sampled: SampledRows, expected: torch.Tensor) -> float:
    """Return the share of stored elements that are the expected ones, rounded to their dtype."""
    import torch

    found, about = sampled.merged, torch.finfo(sampled.stored.dtype)
    size = torch.maximum(found.abs(), expected.abs()).clamp_min_(about.tiny)
    half = torch.exp2(torch.floor(torch.log2(size))) * (about.eps / 2 * _SLACK)
    return float(((found - expected).abs() <= half).double().mean())
