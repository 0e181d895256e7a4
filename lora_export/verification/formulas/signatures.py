"""The signatures of the functions that a proof of a layer kind is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    import torch
    from torch import nn

    from lora_export.records import Delta

    #: The factors of an update, by role.
    Factors = Mapping[str, torch.Tensor]

    #: (delta, factors, numbers of rows) -> these rows of the unscaled update.
    Formula = Callable[[Delta, Factors, torch.Tensor], torch.Tensor]

    #: (delta, factors) -> the two matrices whose product the unscaled update is.
    Sides = Callable[[Delta, Factors], tuple[torch.Tensor, torch.Tensor]]

    #: (delta, factors, scaling, rows of the base in float64, their numbers) -> two tensors of the
    #: rows' shape: what the result moves by, and the magnitude of its errors.
    ChangeFormula = Callable[
        [Delta, Factors, float, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
    ]

    #: (delta, factors, numbers of rows) -> the part of the factors that these rows need.
    PartOfFactors = Callable[[Delta, Factors, torch.Tensor], Factors]

    #: (module, its input, factors, delta) -> a tensor that is added to the module's output.
    LivePart = Callable[[Any, Any, Factors, Delta], torch.Tensor]

    #: (module, its input, its output, factors, delta) -> the output of the unmerged module.
    LiveOutput = Callable[[Any, Any, torch.Tensor, Factors, Delta], torch.Tensor]

    #: (module, delta) -> the branch, attached to a parameter of the module.
    LiveParameter = Callable[[nn.Module, Delta], "LiveBranch"]


class LiveBranch(Protocol):
    """An update at work in the unmerged model."""

    delta: Delta
    calls: int
    """How often the model has used it."""
