"""Weights in float16: refused where they do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import FitError
from lora_export.onnx_export.file.weight_blocks import blocks, dtype_of
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.onnx_export.file.weight_blocks import Weight


def refuse_too_large(weights: Mapping[str, Weight]) -> None:
    """Refuse finite weights that float16 rounds to infinity.

    Raises:
        FitError: there are such weights; all are named.
    """
    largest = {name: _lost(weight) for name, weight in weights.items()}
    problems = [
        Problem(
            f"holds {value:.4g}, and the largest float16 is 65504",
            name,
            "--precision fp32, int8 or int8-weights; or leave it out of the adapter",
            cause="fit/overflow",
        )
        for name, value in largest.items()
        if value
    ]
    if problems:
        raise FitError.of(problems)


def _lost(weight: Weight) -> float:
    """Return the largest finite magnitude that float16 rounds to infinity; 0 where none is."""
    import numpy as np

    if dtype_of(weight).kind not in "fV":
        return 0.0
    most = 0.0
    for block in blocks(weight):
        finite = np.abs(block[np.isfinite(block)]).max(initial=0)
        most = max(most, float(finite))
    with np.errstate(over="ignore"):
        return most if np.isinf(np.float64(most).astype(np.float16)) else 0.0
