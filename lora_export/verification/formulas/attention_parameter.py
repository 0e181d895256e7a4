"""Live branches on parameters that a module reads without calling the layer they belong to.

torch's MultiheadAttention passes its projections' parameters to a function. PEFT 0.21.2 therefore
merges before every forward and unmerges after it: tuners.lora.layer.MultiheadAttention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils import parametrize

from lora_export.checkpoint.tensors import read_tensor
from lora_export.verification.formulas.scaling import scaling_of

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta


class AttentionBranch(nn.Module):
    """A parametrization that adds one update to its parameter at every reading, and counts them."""

    def __init__(self, module: nn.Module, delta: Delta, *, times: int = 1) -> None:
        """Attach to the parameter of `module` that `delta` names.

        times: how often PEFT adds the update in one forward.
        """
        super().__init__()
        self.delta = delta
        self._times = times
        self.calls = 0
        self._factors = {role: read_tensor(ref) for role, ref in delta.factors.items()}
        parametrize.register_parametrization(module, delta.parameter, self)
        self.calls = 0  # torch has read it once to look at its shape

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the parameter plus its update, in the parameter's dtype."""
        self.calls += 1
        down, up = (self._factors[role].to(weight.dtype) for role in ("A", "B"))
        return weight + (up @ down) * (scaling_of(self.delta) * self._times)


def stored_parameter(module: nn.Module, name: str) -> torch.Tensor:
    """Return the parameter `name` of a module without the live branches on it."""
    listed = getattr(module, "parametrizations", None)
    if listed is not None and name in listed:
        stored: torch.Tensor = listed[name].original
        return stored
    parameter: torch.Tensor = getattr(module, name)
    return parameter
