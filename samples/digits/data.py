"""Scikit-learn's bundled digits, plain and turned.

The base reads the plain ones. The adapter has to read them as photographic negatives turned by a
quarter: far enough away that the base fails, near enough that a low rank suffices.
"""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits

# The set is in the order of its writers: cutting instead of shuffling tests on unseen hands.
TRAINING_IMAGES = 1200


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) in 0..1, and the digit each one shows."""

    images: torch.Tensor
    labels: torch.Tensor


def plain() -> tuple[Digits, Digits]:
    """Return the digits as they are: for training, for testing."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    cut = TRAINING_IMAGES
    return Digits(images[:cut], labels[:cut]), Digits(images[cut:], labels[cut:])


def turned() -> tuple[Digits, Digits]:
    """Return the same digits inverted and turned by a quarter: for training, for testing."""
    training, testing = plain()
    return _turn(training), _turn(testing)


def _turn(digits: Digits) -> Digits:
    return Digits(1 - torch.rot90(digits.images, dims=(2, 3)), digits.labels)
