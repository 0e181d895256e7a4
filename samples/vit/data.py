"""Scikit-learn's bundled digits, plain and turned, as a vision transformer takes them."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits

# The set is in the order of its writers: cutting instead of shuffling tests on unseen hands.
TRAINING_IMAGES = 1200


class Digits(NamedTuple):
    """Pixels (N, 1, 8, 8) in 0..1, and the digit each image shows."""

    pixels: torch.Tensor
    labels: torch.Tensor


def plain() -> tuple[Digits, Digits]:
    """Return the digits as they are: for training, for testing."""
    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    cut = TRAINING_IMAGES
    return Digits(pixels[:cut], labels[:cut]), Digits(pixels[cut:], labels[cut:])


def turned() -> tuple[Digits, Digits]:
    """Return the same digits inverted and turned by a quarter: for training, for testing."""
    training, testing = plain()
    return _turn(training), _turn(testing)


def _turn(digits: Digits) -> Digits:
    return Digits(1 - torch.rot90(digits.pixels, dims=(2, 3)), digits.labels)
