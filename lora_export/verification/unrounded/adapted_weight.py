"""The parameter of a running model that an update belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.formulas.attention_parameter import stored_parameter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_export.models.source import ModelSource
    from lora_export.records import Delta

_SHORT = {"weight": "w", "bias": "b"}
"""Last names of parameters in GPT-2's line, as planning.names.base_names knows them."""


def adapted_weight(source: ModelSource, model: nn.Module, delta: Delta) -> torch.Tensor:
    """Return the model's parameter that `delta` updates, without live branches on it.

    It may hold more than the base's tensor: a stack of experts that the base stores one by one.

    Raises:
        FitError, UsageError: the model has no such module.
    """
    module = source.module(model, delta.module)
    owner = getattr(module, "conv", module)  # loralib's convolutions
    leaf = delta.parameter
    return stored_parameter(owner, leaf if hasattr(owner, leaf) else _SHORT.get(leaf, leaf))
