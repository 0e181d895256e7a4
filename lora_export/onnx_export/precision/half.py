"""Weights in float16: rounded once, from float32, and refused where they do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.errors import FitError
from lora_export.onnx_export.file.bindings import as_array
from lora_export.records import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor


def refuse_too_large(weights: Mapping[str, Tensor]) -> None:
    """Refuse finite float32 weights that float16 rounds to infinity.

    Raises:
        FitError: there are such weights; all are named.
    """
    problems = [
        Problem(
            f"holds {_largest(value):.4g}, and the largest float16 is 65504",
            name,
            "--precision fp32, int8 or int8-weights; or leave it out of the adapter",
        )
        for name, value in weights.items()
        if value.is_floating_point() and bool((value.half().isinf() & value.isfinite()).any())
    ]
    if problems:
        raise FitError.of(problems)


def _largest(value: Tensor) -> float:
    return float(value[value.isfinite()].abs().max())


def rounded_once(
    weights: Mapping[str, Tensor], half: Mapping[str, Tensor]
) -> dict[str, NDArray[Any]]:
    """Round float32 weights to what a float16 file must hold.

    numpy rounds here, and not torch, which rounds the weights of the file.

    Args:
        weights: the merged float32 weights.
        half: those of the float16 model, for their dtypes: some may be kept in float32.
    """
    import numpy as np

    rounded = {}
    for name, value in weights.items():
        array, other = as_array(value), as_array(half[name])
        # numpy warns of the infinities of masks. refuse_too_large has refused those of weights.
        with np.errstate(over="ignore"):
            rounded[name] = array.astype(np.float16) if other.dtype == np.float16 else array
    return rounded
