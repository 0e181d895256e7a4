"""A small convolutional reader of 8 x 8 digits, made of loralib's own layers.

`lora-export ... --model samples/digits/model.py:build` reads rank, lora_alpha and layer kinds from
the modules built here. None of these facts can be read from an adapter file.
"""

import loralib as lora
import torch
from torch import nn

# What forward() takes. Named sizes are free, numbers are fixed.
INPUTS = ("image=float32[batch,1,8,8]",)


class DigitReader(nn.Module):
    """Two convolutions, two linear layers; every one of the four can carry an adapter."""

    def __init__(self, *, adapted: bool = True) -> None:
        """Build the network; with `adapted=False` it is the plain base, rank 0 throughout."""
        super().__init__()
        # The scalings 3/2 and 10/4 are neither 1 nor a power of two, so that a forgotten scaling,
        # or one applied at the wrong moment, shows.
        conv = {"r": 2 if adapted else 0, "lora_alpha": 3}
        linear = {"r": 4 if adapted else 0, "lora_alpha": 10}
        # No convolution bias: the batch norm that follows has its own.
        self.conv1 = lora.Conv2d(1, 16, 3, padding=1, bias=False, **conv)
        self.bn1 = nn.BatchNorm2d(16)
        # Grouped, because loralib folds the groups into the shape of lora_B.
        self.conv2 = lora.Conv2d(16, 32, 3, padding=1, groups=4, bias=False, **conv)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc1 = lora.Linear(32 * 4 * 4, 48, **linear)
        self.fc2 = lora.Linear(48, 10, **linear)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Score the ten digits."""
        hidden = torch.relu(self.bn1(self.conv1(image)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        hidden = nn.functional.max_pool2d(hidden, 2).flatten(1)
        scores: torch.Tensor = self.fc2(torch.relu(self.fc1(hidden)))
        return scores


def build() -> nn.Module:
    """Return the adapted network: what `lora.safetensors` was trained in."""
    return DigitReader()
