"""Trained rows of a table, proven: the rows as they must be, and the live layer that reads them.

Reproduces PEFT 0.21.2, tuners.trainable_tokens.layer.TrainableTokensLayer.forward_adapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from lora_export.records import Delta
    from lora_export.verification.expected import Factors


def change(
    delta: Delta, factors: Factors, scale: float, base: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what is added to the given rows of the base, its magnitude); see expected.CHANGES."""
    import torch

    update = torch.zeros_like(base)
    magnitude = torch.zeros_like(base)
    for token, trained in zip(delta.indices, factors["rows"], strict=True):
        place = rows == token
        update[place] = (trained - base[place]) * scale
        magnitude[place] = (trained.abs() + base[place].abs()) * abs(scale)
    return update, magnitude


def branch(
    module: Any,  # noqa: ANN401
    x: Any,  # noqa: ANN401
    output: torch.Tensor,
    factors: Factors,
    delta: Delta,
) -> torch.Tensor:
    """The layer's output with the trained tokens' rows: of a table by ids, of a head by column."""
    import torch

    weight, rows = module.weight.to(output.dtype), factors["rows"]
    tokens = torch.tensor(delta.indices)
    moved = (rows - weight[tokens]) * delta.weight
    if x.is_floating_point():
        return output.index_add(-1, tokens, x @ moved.T)
    places = (x[..., None] == tokens).to(output.dtype)
    added: torch.Tensor = (places @ moved) * embed_scale(module)
    return output + added


def embed_scale(module: Any) -> Any:  # noqa: ANN401
    """What an embedding multiplies its rows with on their way out, as Gemma 3's do; else 1."""
    return getattr(module, "embed_scale", 1.0)
