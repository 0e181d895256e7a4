"""DoRA: the sum of weight and update, scaled to a learned length, row by row or by column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.errors import FitError

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta


def length_factor(
    delta: Delta,
    magnitude: torch.Tensor,
    length: torch.Tensor,
    first: int = 0,
    *,
    by_column: bool = False,
) -> torch.Tensor:
    """Divide the learned magnitudes by the present lengths, element by element.

    Reproduces `magnitude / weight_norm` of PEFT 0.21.2, tuners.lora.variants.

    Args:
        delta: the update, for messages.
        magnitude: the learned lengths, of any shape that broadcasts with `length`.
        length: the lengths of rows or columns of weight and update together.
        first: the number of the first row or column, for messages.
        by_column: whether the lengths are those of columns, for messages.

    Raises:
        FitError: a length is zero. PEFT gives NaN or infinity there.
    """
    zero = (length == 0).flatten()
    if zero.any():
        place = f"{'column' if by_column else 'row'} {first + int(zero.nonzero()[0])}"
        message = f"{place} of weight and update together is zero, and DoRA divides by its length"
        hint = "PEFT gives NaN there: check whether the base is pruned, or train without DoRA"
        raise FitError(
            message, where=f"{delta.module}.{delta.parameter}", hint=hint, cause="fit/dora-zero"
        )
    return magnitude / length
