"""A module of adapted layers with their live branches, on which the saved nodes are counted.

An export with the LoRA in the graph would have it in the layers' place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lora_export.verification.factors import factors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from lora_export.verification.model.branches import Site


class LiveLayers(nn.Module):
    """Layers side by side, each with two outputs: without the update, and with it."""

    def __init__(self, sites: Sequence[Site]) -> None:
        """Take the layers as they are, without hooks, and the factors as parameters."""
        super().__init__()
        self._sites = sites
        self.layers = nn.ModuleList(site.module for site in sites)
        for layer in self.layers:
            layer._forward_hooks.clear()  # noqa: SLF001 - the model it is from is gone
        self.factors = nn.ModuleList(
            nn.ParameterDict(
                {
                    role: nn.Parameter(value.float(), requires_grad=False)
                    for role, value in factors_of(site.branch.delta, exact=False).items()
                }
            )
            for site in sites
        )

    def forward(self, *taken: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run every layer without and with its update; both share the layer's own computation.

        taken: the input of each layer.

        Returns:
            the outputs `plain_0`, `live_0`, `plain_1`, ...
        """
        outputs = {}
        for at, (site, x) in enumerate(zip(self._sites, taken, strict=True)):
            layer, factors = self.layers[at], dict(self.factors[at].items())  # type: ignore[operator]
            plain = layer(x)
            outputs[f"plain_{at}"] = plain
            outputs[f"live_{at}"] = site.branch.form(layer, x, plain, factors, site.branch.delta)
        return outputs
