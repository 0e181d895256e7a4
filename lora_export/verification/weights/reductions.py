"""What a block of rows comes down to: sums, distances, and the rows that differ."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sum_of_squares(matrix: torch.Tensor) -> float:
    """Return the sum of the squares of all elements, in the matrix's own dtype."""
    import torch

    flat = matrix.reshape(-1)
    return float(torch.dot(flat, flat))


def root_mean_square(matrix: torch.Tensor) -> float:
    """Return the root of the mean square of all elements.

    The squares are summed in float64 if they overflow float32.
    """
    squares = sum_of_squares(matrix)
    if not isfinite(squares):
        squares = sum_of_squares(matrix.double())
    return sqrt(squares / matrix.numel())


def rows_that_differ(expected: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the rows whose bits are not equal, of half-precision matrices."""
    import torch

    # Four elements at once, if a row is a whole number of them.
    whole = torch.int64 if expected.shape[1] % 4 == 0 else torch.int16
    one, other = (each.view(whole).numpy() for each in (expected, written))
    unlike = one != other  # numpy compares integers three times as fast as torch
    return torch.from_numpy(unlike.any(axis=1).nonzero()[0])


def distances(written: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return the absolute differences in float64, infinite for a written NaN or infinity.

    `exact` is finite: the merge refuses a base and factors that are not.
    """
    return (written.double() - exact).abs_().nan_to_num_(nan=float("inf"), posinf=float("inf"))
