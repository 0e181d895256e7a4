"""One adapted layer with its live branch, as a module of its own.

It is what an export with the LoRA in the graph would hold in the layer's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lora_export.verification.expected import factors_of

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.branches import Form, Site

PLAIN, LIVE = "plain", "live"


class LiveLayer(nn.Module):
    """An adapted layer; gives its outputs without the update and with it, by these names."""

    def __init__(self, site: Site) -> None:
        """Take the layer as it is, without hooks, and the factors as parameters."""
        super().__init__()
        self.layer = site.module
        self.layer._forward_hooks.clear()  # noqa: SLF001 - the model it is from is gone
        self._form: Form = site.branch.form
        self._delta: Delta = site.branch.delta
        named = factors_of(site.branch.delta, exact=False)
        self.factors = nn.ParameterDict(
            {
                role: nn.Parameter(value.float(), requires_grad=False)
                for role, value in named.items()
            }
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both outputs; what they share is computed once."""
        plain = self.layer(x)
        return {
            PLAIN: plain,
            LIVE: self._form(self.layer, x, plain, dict(self.factors), self._delta),
        }
