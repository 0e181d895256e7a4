"""Live branches that run a second layer of the module's own class beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def beside(module: Any, x: Any, weight: torch.Tensor) -> torch.Tensor:
    """Run the module on `x` with another weight of the same shape, and without bias.

    loralib keeps the convolution in an attribute `conv`.
    """
    import torch.nn.functional as F

    if weight.dim() == 2:
        return F.linear(x, weight)
    layer = module if hasattr(module, "_conv_forward") else module.conv
    result: torch.Tensor = layer._conv_forward(x, weight, None)  # noqa: SLF001 - as PEFT calls it
    return result


def convolution_of(module: Any) -> Callable[..., torch.Tensor]:
    """Return torch's convolution function for the module's number of dimensions."""
    import torch.nn.functional as F

    convolve: Callable[..., torch.Tensor] = (F.conv1d, F.conv2d, F.conv3d)[module.weight.dim() - 3]
    return convolve
